"""From a recipe's text, or the plain data in a checkpoint, to a checked `Recipe` that knows where its values stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.parsing import KeyPath, Position, dump_yaml, format_key_path, parse_yaml
from ftcli.recipe.schema import Backbone, Recipe
from ftcli.recipe.validation import describe_error, known_keys


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and where it came from. `overrides` are the options of the command line that values come from."""

    recipe: Recipe
    source: str
    key_positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    value_positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def locate(self, *key_path: str | int) -> str:
        """Where a value stands, for the beginning of a message: `x.yaml:5:9: data.root`.

        A value that the recipe leaves out is given the place of the nearest mapping that would hold it.
        """
        return _format_location(self, key_path, self.recipe.model_dump(), value=True)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read and check a recipe. `overrides` are `dotted.key=value` as --set takes them.

    Raises RecipeError with every fault of the text and the schema at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe; {_suggest_recipe(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error}); give a YAML recipe") from error
    parsed = parse_yaml(text, str(path))
    return _validate(parsed.data, _RecipeSource(str(path), parsed.key_positions, parsed.value_positions), overrides)


def recipe_from_dict(data: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> RecipeFile:
    """Check the recipe that a checkpoint carries; `source` names the checkpoint in messages."""
    return _validate(copy.deepcopy(dict(data)), _RecipeSource(source, {}, {}), overrides)


def backbone_from_options(
    model: str | None, weights: str | None, match: str | None, sha256: str | None
) -> Backbone | None:
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
    options = {"name": model, "weights": weights, "match": match, "sha256": sha256}
    try:
        return Backbone.model_validate({key: value for key, value in options.items() if value is not None})
    except pydantic.ValidationError as error:
        errors = [f"--{(*detail['loc'], 'weights')[0]}: {describe_error(detail)}" for detail in error.errors()]
        raise RecipeError(*errors) from error


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as YAML that `read_recipe` reads back as the same."""
    return dump_yaml(recipe.model_dump(mode="json"))


@dataclass(frozen=True)
class _RecipeSource:
    source: str
    key_positions: Mapping[KeyPath, Position]
    value_positions: Mapping[KeyPath, Position]
    overrides: dict[KeyPath, str] = field(default_factory=dict)


def _validate(data: Any, source: _RecipeSource, overrides: Sequence[str]) -> RecipeFile:
    errors = [message for text in overrides if (message := _apply_override(data, text, source.overrides))]
    try:
        recipe = Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        errors += [
            line for _, line in sorted(_format_validation_error(detail, data, source) for detail in error.errors())
        ]
    if errors:
        raise RecipeError(*errors)
    return RecipeFile(recipe, source.source, source.key_positions, source.value_positions, source.overrides)


def _format_validation_error(error: Any, data: Any, source: _RecipeSource) -> tuple[tuple[int, int], str]:
    """An error as a sentence, after the line and column by which sentences are put in order."""
    key_path = _to_key_path(data, error["loc"])
    if error["type"] in ("missing", "extra_forbidden") and (not key_path or key_path[-1] != error["loc"][-1]):
        key_path = (*key_path, error["loc"][-1])
    value = error["type"] != "extra_forbidden"
    position = _find_position(source, key_path, value=value)
    order = (position.line, position.column) if position else (0, 0)
    return order, f"{_format_location(source, key_path, data, value=value)}: {describe_error(error)}"


def _to_key_path(data: Any, loc: Sequence[str | int]) -> KeyPath:
    """pydantic's location without the tags of unions, which no recipe holds."""
    key_path: list[str | int] = []
    for part in loc:
        if _contains(data, part):
            data = data[part]
            key_path.append(part)
    return tuple(key_path)


def _contains(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _format_location(source: _RecipeSource | RecipeFile, key_path: KeyPath, data: Any, *, value: bool) -> str:
    for length in range(len(key_path), -1, -1):
        if key_path[:length] in source.overrides:
            return f"{source.overrides[key_path[:length]]}: {format_key_path(_name_stage(data, key_path))}"
    position = _find_position(source, key_path, value=value)
    location = f"{source.source}:{position}" if position else source.source
    return f"{location}: {format_key_path(_name_stage(data, key_path))}"


def _find_position(source: _RecipeSource | RecipeFile, key_path: KeyPath, *, value: bool) -> Position | None:
    """Where the value or key at a place stands, or else the nearest mapping that would hold it."""
    positions = source.value_positions if value else source.key_positions
    return next((positions[key_path[:n]] for n in range(len(key_path), -1, -1) if key_path[:n] in positions), None)


def _name_stage(data: Any, key_path: KeyPath) -> KeyPath:
    """A stage is told by its name, as --set takes it, where it has one."""
    if len(key_path) >= 2 and key_path[0] == "stages" and isinstance(key_path[1], int):
        name = _get_stage_name(data, key_path[1])
        return ("stages", name if name else key_path[1], *key_path[2:])
    return key_path


def _get_stage_name(data: Any, index: int) -> str | None:
    stages = data.get("stages") if isinstance(data, dict) else None
    stage = stages[index] if isinstance(stages, (list, tuple)) and index < len(stages) else None
    name = stage.get("name") if isinstance(stage, dict) else None
    return name if isinstance(name, str) else None


def _apply_override(data: Any, text: str, applied: dict[KeyPath, str]) -> str | None:
    """Put one `dotted.key=value` into the data; returns a fault or None."""
    dotted, equals, raw_value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"--set {text}: is not KEY=VALUE; write it as in --set stages.all.epochs=3"
    value = parse_yaml(raw_value, f"--set {text}").data if raw_value.strip() else None
    key_path: list[str | int] = []
    for position, key in enumerate(keys):
        is_last = position == len(keys) - 1
        resolved = _resolve_key(data, tuple(key_path), key)
        if resolved is None:
            return f"--set {text}: {format_key_path((*key_path, key))}: there is no such item; {_suggest_sibling(data, tuple(key_path), key)}"
        key_path.append(resolved)
        if is_last:
            data[resolved] = value
        elif isinstance(data, dict) and not isinstance(data.get(resolved), (dict, list)):
            if resolved not in known_keys(tuple(key_path[:-1])):
                return f"--set {text}: {format_key_path(tuple(key_path))}: unknown key; {suggest(key, known_keys(tuple(key_path[:-1])))}"
            data[resolved] = {}
        data = data[resolved]
    applied[tuple(key_path)] = f"--set {text}"
    return None


def _resolve_key(data: Any, key_path: KeyPath, key: str) -> str | int | None:
    if isinstance(data, dict):
        return key
    if not isinstance(data, list):
        return None
    indices = [i for i, item in enumerate(data) if isinstance(item, dict) and item.get("name") == key]
    if key_path == ("stages",) and indices:
        return indices[0]
    return int(key) if key.isdecimal() and int(key) < len(data) else None


def _suggest_sibling(data: Any, key_path: KeyPath, key: str) -> str:
    if isinstance(data, list):
        names = [item["name"] for item in data if isinstance(item, dict) and isinstance(item.get("name"), str)]
        return suggest(key, names) if names else f"the list has {len(data)} items, counted from 0"
    return f"{format_key_path(key_path)} is a single value"


def _suggest_recipe(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    names = [str(recipe) for recipe in sorted(folder.glob("*.y*ml"))]
    return suggest(str(path), names) if names else "give the path of a YAML recipe"
