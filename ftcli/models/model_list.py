"""List the available models with their published numbers."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from ftcli.errors import RecipeError, suggest
from ftcli.models.factory import check_model, create_model, list_timm_models, list_torchvision_models
from ftcli.models.pretrained_cfg import TIMM_PREFIX, get_default_weights
from ftcli.models.summary import count_parameters, summarize
from ftcli.results import ModelEntry, ModelListResult, Progress, Reporter

logger = logging.getLogger(__name__)

MAX_CREATED_MODELS = 50
"""timm models are created to count their parameters only if a glob matches at most this many."""

_SORT_KEYS: dict[str, Callable[[ModelEntry], float | None]] = {
    "name": lambda _row: 0,
    "size": lambda row: row.parameters,
    "speed": lambda row: row.multiply_adds,
    "accuracy": lambda row: None if row.accuracy is None else -row.accuracy,
}


def is_glob(name: str) -> bool:
    """Return whether a name contains a shell wildcard."""
    return any(char in name for char in "*?[")


def build_model_list(glob: str | None, sort_by: str, location: str, reporter: Reporter) -> ModelListResult:
    """Return the models whose names match a glob (None: all), with the published numbers of their default weights.

    torchvision's numbers include auxiliary heads. timm publishes none: parameters and multiply-adds are counted if a
    glob matches at most `MAX_CREATED_MODELS` of its models, and accuracies are unknown. Sort keys: name; size, fewest
    parameters first; speed, fewest multiply-adds first; accuracy, best first; models without the value are last.
    Raises RecipeError for an unknown sort key and for a glob without a match.
    """
    if sort_by not in _SORT_KEYS:
        raise RecipeError(f"--sort: unknown order {sort_by!r}; {suggest(sort_by, _SORT_KEYS)}")
    names = _match_names(glob, location)
    to_count = [name for name in names if glob is not None and name.startswith(TIMM_PREFIX)]
    to_count = to_count if len(to_count) <= MAX_CREATED_MODELS else []
    rows = []
    for name in names:
        row = _read_published_row(name)
        if name in to_count:
            row = _add_counts(row)
            reporter.update_progress(Progress("counting", to_count.index(name) + 1, len(to_count)))
        rows.append(row)
    sort_key = _SORT_KEYS[sort_by]
    return ModelListResult(tuple(sorted(rows, key=lambda row: _sort_none_last(sort_key(row)))), glob)


def _sort_none_last(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0


def _match_names(glob: str | None, location: str) -> tuple[str, ...]:
    if glob is None:
        return (*list_torchvision_models(), *list_timm_models())
    start = re.split(r"[*?\[]", glob)[0]
    may_match_timm = start.startswith(TIMM_PREFIX) or TIMM_PREFIX.startswith(start)
    known = (
        *list_torchvision_models(),
        *(list_timm_models() if may_match_timm else ()),
    )  # importing timm takes seconds
    matched = tuple(name for name in known if fnmatchcase(name, glob))
    if matched:
        return matched
    if start.startswith(TIMM_PREFIX) and importlib.util.find_spec("timm") is None:
        check_model(glob, location)
    literal = re.sub(r"[*?\[\]]", "", glob)
    raise RecipeError(f"{location}: no model matches {glob!r}; {suggest(literal, known)}")


def _read_published_row(name: str) -> ModelEntry:
    default = get_default_weights(name)
    return ModelEntry(
        name=name,
        parameters=default.parameters,
        multiply_adds=default.multiply_adds,
        image_size=default.preprocessing.image_size,
        accuracy=default.accuracy,
        weights=default.name if default.url else None,
    )


def _add_counts(row: ModelEntry) -> ModelEntry:
    try:
        model = create_model(row.name, meta=True, image_size=row.image_size, location="inspect")
        summary = summarize(model, row.image_size, f"inspect: {row.name}")
    except RecipeError as error:
        logger.warning(str(error))
        return row
    return replace(row, parameters=count_parameters(model), multiply_adds=summary.multiply_adds)
