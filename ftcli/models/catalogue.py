"""The networks there are, and what is known of each before one is chosen."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from ftcli.errors import RecipeError, suggest
from ftcli.models.anatomy import examine
from ftcli.models.inspection import count_parameters
from ftcli.models.published import TIMM, list_published
from ftcli.models.zoo import build_network, check_model, list_models, list_timm_models
from ftcli.results import ModelList, ModelRow, Progress, Reporter

COUNTED = 50
"""At most so many of timm's networks are built to be counted."""

_ORDERS: dict[str, Callable[[ModelRow], float | None]] = {
    "name": lambda _row: 0,
    "size": lambda row: row.parameters,
    "speed": lambda row: row.multiply_adds,
    "accuracy": lambda row: None if row.accuracy is None else -row.accuracy,
}


def is_glob(name: str) -> bool:
    """Whether a name stands for all names that match it, as in a shell."""
    return any(sign in name for sign in "*?[")


def list_catalogue(glob: str | None, order: str, where: str, reporter: Reporter) -> ModelList:
    """The models whose names match a glob, or all, with what is known of their default weights.

    torchvision's figures are those that it publishes, auxiliary heads included. timm publishes none: they are counted
    where a glob matches at most `COUNTED` of its models, and are unknown otherwise, its accuracies always. Orders:
    name; size, fewest parameters first; speed, fewest multiply-adds first; accuracy, best first. What is unknown
    comes last. Raises RecipeError for an unknown order and, beginning with `where`, for a glob that matches nothing.
    """
    if order not in _ORDERS:
        raise RecipeError(f"--sort: models are in no order called {order!r}; {suggest(order, _ORDERS)}")
    names = _match_names(glob, where)
    counted = [name for name in names if glob is not None and name.startswith(TIMM)]
    counted = counted if len(counted) <= COUNTED else []
    rows = []
    for name in names:
        row = _read_row(name)
        if name in counted:
            row = _count(row, reporter)
            reporter.advance(Progress("counting", counted.index(name) + 1, len(counted)))
        rows.append(row)
    figure = _ORDERS[order]
    return ModelList(tuple(sorted(rows, key=lambda row: _rank(figure(row)))), glob)


def _rank(figure: float | None) -> tuple[bool, float]:
    return figure is None, figure or 0


def _match_names(glob: str | None, where: str) -> tuple[str, ...]:
    if glob is None:
        return (*list_models(), *list_timm_models())
    start = re.split(r"[*?\[]", glob)[0]
    timm = start.startswith(TIMM) or TIMM.startswith(start)
    known = (*list_models(), *(list_timm_models() if timm else ()))  # which takes seconds to load
    matched = tuple(name for name in known if fnmatchcase(name, glob))
    if matched:
        return matched
    if start.startswith(TIMM) and importlib.util.find_spec("timm") is None:
        check_model(glob, where)
    plain = re.sub(r"[*?\[\]]", "", glob)
    raise RecipeError(f"{where}: no model matches {glob!r}; {suggest(plain, known)}")


def _read_row(name: str) -> ModelRow:
    default = next(entry for entry in list_published(name) if entry.default)
    return ModelRow(
        name=name,
        parameters=default.parameters,
        multiply_adds=default.multiply_adds,
        image_size=default.preprocessing.image_size,
        accuracy=default.accuracy,
        weights=default.name if default.url else None,
    )


def _count(row: ModelRow, reporter: Reporter) -> ModelRow:
    try:
        network = build_network(row.name, True, row.image_size, "inspect")
        anatomy = examine(network, row.image_size, f"inspect: {row.name}")
    except RecipeError as error:
        reporter.warn(str(error))
        return row
    return replace(row, parameters=count_parameters(network), multiply_adds=anatomy.multiply_adds)
