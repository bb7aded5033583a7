"""The networks there are, and what is known of each before one is chosen."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from ftcli.errors import RecipeError, suggest
from ftcli.models.factory import check_model, create_model, list_timm_models, list_torchvision_models
from ftcli.models.inspection import count_parameters
from ftcli.models.pretrained.pretrained_cfg import TIMM_PREFIX, list_pretrained_weights
from ftcli.models.summary import summarize
from ftcli.results import ModelEntry, ModelListResult, Progress, Reporter

MAX_BUILT_MODELS = 50
"""At most so many of timm's networks are built to be counted."""

_SORT_KEYS: dict[str, Callable[[ModelEntry], float | None]] = {
    "name": lambda _row: 0,
    "size": lambda row: row.parameters,
    "speed": lambda row: row.multiply_adds,
    "accuracy": lambda row: None if row.accuracy is None else -row.accuracy,
}


def is_glob(name: str) -> bool:
    """Whether a name stands for all names that match it, as in a shell."""
    return any(char in name for char in "*?[")


def build_model_list(glob: str | None, sort_by: str, location: str, reporter: Reporter) -> ModelListResult:
    """The models whose names match a glob, or all, with what is known of their default weights.

    torchvision's figures are those that it publishes, auxiliary heads included. timm publishes none: they are counted
    where a glob matches at most `MAX_BUILT_MODELS` of its models, and are unknown otherwise, its accuracies always. Orders:
    name; size, fewest parameters first; speed, fewest multiply-adds first; accuracy, best first. What is unknown
    comes last. Raises RecipeError for an unknown order and, beginning with `where`, for a glob that matches nothing.
    """
    if sort_by not in _SORT_KEYS:
        raise RecipeError(f"--sort: models are in no order called {sort_by!r}; {suggest(sort_by, _SORT_KEYS)}")
    names = _match_names(glob, location)
    to_count = [name for name in names if glob is not None and name.startswith(TIMM_PREFIX)]
    to_count = to_count if len(to_count) <= MAX_BUILT_MODELS else []
    rows = []
    for name in names:
        row = _published_row(name)
        if name in to_count:
            row = _add_counts(row, reporter)
            reporter.update_progress(Progress("counting", to_count.index(name) + 1, len(to_count)))
        rows.append(row)
    sort_key = _SORT_KEYS[sort_by]
    return ModelListResult(tuple(sorted(rows, key=lambda row: _none_last(sort_key(row)))), glob)


def _none_last(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0


def _match_names(glob: str | None, location: str) -> tuple[str, ...]:
    if glob is None:
        return (*list_torchvision_models(), *list_timm_models())
    start = re.split(r"[*?\[]", glob)[0]
    may_match_timm = start.startswith(TIMM_PREFIX) or TIMM_PREFIX.startswith(start)
    known = (*list_torchvision_models(), *(list_timm_models() if may_match_timm else ()))  # which takes seconds to load
    matched = tuple(name for name in known if fnmatchcase(name, glob))
    if matched:
        return matched
    if start.startswith(TIMM_PREFIX) and importlib.util.find_spec("timm") is None:
        check_model(glob, location)
    literal = re.sub(r"[*?\[\]]", "", glob)
    raise RecipeError(f"{location}: no model matches {glob!r}; {suggest(literal, known)}")


def _published_row(name: str) -> ModelEntry:
    default = next(entry for entry in list_pretrained_weights(name) if entry.is_default)
    return ModelEntry(
        name=name,
        parameters=default.parameters,
        multiply_adds=default.multiply_adds,
        image_size=default.preprocessing.image_size,
        accuracy=default.accuracy,
        weights=default.name if default.url else None,
    )


def _add_counts(row: ModelEntry, reporter: Reporter) -> ModelEntry:
    try:
        network = create_model(row.name, True, row.image_size, "inspect")
        summary = summarize(network, row.image_size, f"inspect: {row.name}")
    except RecipeError as error:
        reporter.warn(str(error))
        return row
    return replace(row, parameters=count_parameters(network), multiply_adds=summary.multiply_adds)
