"""From a recipe's text, or the plain data in a checkpoint, to a checked `Recipe` that knows where its values stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.faults import explain, known_keys
from ftcli.recipe.parsing import Mark, Place, join, parse_yaml, write_yaml
from ftcli.recipe.schema import Backbone, Recipe


@dataclass(frozen=True)
class Document:
    """A recipe and where it came from. `overrides` are the options of the command line that values come from."""

    recipe: Recipe
    source: str
    keys: Mapping[Place, Mark] = field(default_factory=dict)
    values: Mapping[Place, Mark] = field(default_factory=dict)
    overrides: Mapping[Place, str] = field(default_factory=dict)

    def locate(self, *place: str | int) -> str:
        """Where a value stands, for the beginning of a message: `x.yaml:5:9: data.root`.

        A value that the recipe leaves out is given the place of the nearest mapping that would hold it.
        """
        return _locate(self, place, self.recipe.model_dump(), value=True)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read and check a recipe. `overrides` are `dotted.key=value` as --set takes them.

    Raises RecipeError with every fault of the text and the schema at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe; {_offer(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error}); give a YAML recipe") from error
    parsed = parse_yaml(text, str(path))
    return _check(parsed.data, _Origin(str(path), parsed.keys, parsed.values), overrides)


def revive_recipe(plain: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Document:
    """Check the recipe that a checkpoint carries; `source` names the checkpoint in messages."""
    return _check(copy.deepcopy(dict(plain)), _Origin(source, {}, {}), overrides)


def choose_weights(model: str | None, weights: str | None, match: str | None, sha256: str | None) -> Backbone | None:
    """The backbone that options of the command line ask for beside the name of a model; None where they ask for no
    weights. `model` is None where a recipe or a checkpoint is given, which have their own; None leaves a key its
    default. Raises RecipeError with every fault, each at its option.
    """
    if weights is None:
        if match or sha256:
            raise RecipeError(f"--{'match' if match else 'sha256'}: does nothing without --weights; add it")
        return None
    if model is None:
        raise RecipeError(
            f"--weights {weights}: goes with the name of a model; a recipe or checkpoint has weights of its own"
        )
    given = {"name": model, "weights": weights, "match": match, "sha256": sha256}
    try:
        return Backbone.model_validate({key: value for key, value in given.items() if value is not None})
    except pydantic.ValidationError as error:
        faults = [f"--{(*detail['loc'], 'weights')[0]}: {explain(detail)}" for detail in error.errors()]
        raise RecipeError(*faults) from error


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as YAML that `read_recipe` reads back as the same."""
    return write_yaml(recipe.model_dump(mode="json"))


@dataclass(frozen=True)
class _Origin:
    source: str
    keys: Mapping[Place, Mark]
    values: Mapping[Place, Mark]
    overrides: dict[Place, str] = field(default_factory=dict)


def _check(data: Any, origin: _Origin, overrides: Sequence[str]) -> Document:
    faults = [fault for text in overrides if (fault := _override(data, text, origin.overrides))]
    try:
        recipe = Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        faults += [sentence for _, sentence in sorted(_sentence(detail, data, origin) for detail in error.errors())]
    if faults:
        raise RecipeError(*faults)
    return Document(recipe, origin.source, origin.keys, origin.values, origin.overrides)


def _sentence(error: Any, data: Any, origin: _Origin) -> tuple[tuple[int, int], str]:
    """An error as a sentence, after the line and column by which sentences are put in order."""
    place = _place_in(data, error["loc"])
    if error["type"] in ("missing", "extra_forbidden") and (not place or place[-1] != error["loc"][-1]):
        place = (*place, error["loc"][-1])
    value = error["type"] != "extra_forbidden"
    mark = _mark(origin, place, value=value)
    order = (mark.line, mark.column) if mark else (0, 0)
    return order, f"{_locate(origin, place, data, value=value)}: {explain(error)}"


def _place_in(data: Any, loc: Sequence[str | int]) -> Place:
    """pydantic's location without the tags of unions, which no recipe holds."""
    place: list[str | int] = []
    for part in loc:
        if _holds(data, part):
            data = data[part]
            place.append(part)
    return tuple(place)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _locate(origin: _Origin | Document, place: Place, data: Any, *, value: bool) -> str:
    for length in range(len(place), -1, -1):
        if place[:length] in origin.overrides:
            return f"{origin.overrides[place[:length]]}: {join(_by_name(data, place))}"
    mark = _mark(origin, place, value=value)
    at = f"{origin.source}:{mark}" if mark else origin.source
    return f"{at}: {join(_by_name(data, place))}"


def _mark(origin: _Origin | Document, place: Place, *, value: bool) -> Mark | None:
    """Where the value or key at a place stands, or else the nearest mapping that would hold it."""
    marks = origin.values if value else origin.keys
    return next((marks[place[:n]] for n in range(len(place), -1, -1) if place[:n] in marks), None)


def _by_name(data: Any, place: Place) -> Place:
    """A stage is told by its name, as --set takes it, where it has one."""
    if len(place) >= 2 and place[0] == "stages" and isinstance(place[1], int):
        name = _stage_name(data, place[1])
        return ("stages", name if name else place[1], *place[2:])
    return place


def _stage_name(data: Any, index: int) -> str | None:
    stages = data.get("stages") if isinstance(data, dict) else None
    stage = stages[index] if isinstance(stages, (list, tuple)) and index < len(stages) else None
    name = stage.get("name") if isinstance(stage, dict) else None
    return name if isinstance(name, str) else None


def _override(data: Any, text: str, done: dict[Place, str]) -> str | None:
    """Put one `dotted.key=value` into the data; returns a fault or None."""
    dotted, equals, written = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"--set {text}: is not KEY=VALUE; write it as in --set stages.all.epochs=3"
    value = parse_yaml(written, f"--set {text}").data if written.strip() else None
    place: list[str | int] = []
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        step = _step(data, tuple(place), key)
        if step is None:
            return f"--set {text}: {join((*place, key))}: there is no such item; {_siblings(data, tuple(place), key)}"
        place.append(step)
        if last:
            data[step] = value
        elif isinstance(data, dict) and not isinstance(data.get(step), (dict, list)):
            if step not in known_keys(tuple(place[:-1])):
                return f"--set {text}: {join(tuple(place))}: unknown key; {suggest(key, known_keys(tuple(place[:-1])))}"
            data[step] = {}
        data = data[step]
    done[tuple(place)] = f"--set {text}"
    return None


def _step(data: Any, place: Place, key: str) -> str | int | None:
    if isinstance(data, dict):
        return key
    if not isinstance(data, list):
        return None
    named = [i for i, item in enumerate(data) if isinstance(item, dict) and item.get("name") == key]
    if place == ("stages",) and named:
        return named[0]
    return int(key) if key.isdecimal() and int(key) < len(data) else None


def _siblings(data: Any, place: Place, key: str) -> str:
    if isinstance(data, list):
        names = [item["name"] for item in data if isinstance(item, dict) and isinstance(item.get("name"), str)]
        return suggest(key, names) if names else f"the list has {len(data)} items, counted from 0"
    return f"{join(place)} is a single value"


def _offer(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    names = [str(found) for found in sorted(folder.glob("*.y*ml"))]
    return suggest(str(path), names) if names else "give the path of a YAML recipe"
