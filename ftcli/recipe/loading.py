"""Recipes read from a YAML file, a checkpoint or command-line options, with --set KEY=VALUE applied."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.parsing import KeyPath, Position, dump_yaml, format_key_path, parse_yaml
from ftcli.recipe.schema import Backbone, Recipe
from ftcli.recipe.validation import describe_error, describe_unknown_key, is_renamed, known_keys


@dataclass(frozen=True)
class RecipeSource:
    """The file or checkpoint of a recipe and the positions of its keys and values.

    `overrides` maps the key path of each value from the command line to the option that set it.
    """

    name: str
    key_positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    value_positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def locate(self, key_path: KeyPath, data: Any, *, is_value: bool = True) -> str:
        """Return the location of a value or key as the beginning of a message, such as `x.yaml:5:9: data.root`."""
        dotted = format_key_path(_use_stage_name(key_path, data))
        for length in range(len(key_path), -1, -1):
            if option := self.overrides.get(key_path[:length]):
                return f"{option}: {dotted}"
        position = self.find_position(key_path, is_value=is_value)
        return f"{self.name}:{position}: {dotted}" if position else f"{self.name}: {dotted}"

    def find_position(self, key_path: KeyPath, *, is_value: bool = True) -> Position | None:
        """Return the position of a value or key, else that of the nearest mapping that would hold it."""
        positions = self.value_positions if is_value else self.key_positions
        parents = (key_path[:length] for length in range(len(key_path), -1, -1))
        return next((positions[parent] for parent in parents if parent in positions), None)


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with its source."""

    recipe: Recipe
    source: RecipeSource

    def locate(self, *key_path: str | int) -> str:
        """Return the location of a value as the beginning of a message, such as `x.yaml:5:9: data.root`.

        A value that the recipe omits has the position of the nearest mapping that would hold it.
        """
        return self.source.locate(key_path, self.recipe.model_dump())


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read and validate a recipe. `overrides` are the `dotted.key=value` of --set.

    Raises RecipeError with all errors of the YAML, or else all errors of the schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: does not exist; {_suggest_recipe(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error}); give a YAML recipe") from error
    parsed = parse_yaml(text, str(path))
    return _validate(parsed.data, RecipeSource(str(path), parsed.key_positions, parsed.value_positions), overrides)


def recipe_from_dict(data: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> RecipeFile:
    """Validate the recipe of a checkpoint; `source` is the checkpoint's name in messages."""
    return _validate(copy.deepcopy(dict(data)), RecipeSource(source), overrides)


def backbone_from_options(
    model: str | None, weights: str | None, match: str | None, sha256: str | None
) -> Backbone | None:
    """Return the backbone for --weights, --match and --sha256, or None without --weights.

    `model` is None where a recipe or checkpoint is given instead of a model name. An option that is None has its
    default. Raises RecipeError with all errors, each at its option.
    """
    if weights is None:
        if match or sha256:
            raise RecipeError(f"--{'match' if match else 'sha256'}: requires --weights")
        return None
    if model is None:
        raise RecipeError(f"--weights {weights}: requires a model name; recipes and checkpoints have their own weights")
    options = {"name": model, "weights": weights, "match": match, "sha256": sha256}
    try:
        return Backbone.model_validate({key: value for key, value in options.items() if value is not None})
    except pydantic.ValidationError as error:
        errors = [f"--{(*detail['loc'], 'weights')[0]}: {describe_error(detail)}" for detail in error.errors()]
        raise RecipeError(*errors) from error


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe with all defaults as YAML that `read_recipe` reads back as the same recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _validate(data: Any, source: RecipeSource, overrides: Sequence[str]) -> RecipeFile:
    applied, errors = apply_overrides(data, overrides)
    source = replace(source, overrides=applied)
    try:
        recipe = Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        details = [detail for detail in error.errors() if not is_renamed(detail)]
        errors += [line for _, line in sorted(_format_validation_error(detail, data, source) for detail in details)]
    if errors:
        raise RecipeError(*errors)
    return RecipeFile(recipe, source)


def _format_validation_error(error: Any, data: Any, source: RecipeSource) -> tuple[tuple[int, int], str]:
    """Return the line and column of an error, for sorting, and its message."""
    key_path = _to_key_path(data, error["loc"])
    if error["type"] in ("missing", "extra_forbidden") and (not key_path or key_path[-1] != error["loc"][-1]):
        key_path = (*key_path, error["loc"][-1])
    is_value = error["type"] != "extra_forbidden"
    position = source.find_position(key_path, is_value=is_value)
    order = (position.line, position.column) if position else (0, 0)
    return order, f"{source.locate(key_path, data, is_value=is_value)}: {describe_error(error)}"


def _to_key_path(data: Any, loc: Sequence[str | int]) -> KeyPath:
    """Return pydantic's location without the tags of unions, which are not keys of the recipe."""
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


def _use_stage_name(key_path: KeyPath, data: Any) -> KeyPath:
    """Replace the index of a stage by its name, as --set takes it, if it has one."""
    if len(key_path) >= 2 and key_path[0] == "stages" and isinstance(key_path[1], int):
        return ("stages", _get_stage_name(data, key_path[1]) or key_path[1], *key_path[2:])
    return key_path


def _get_stage_name(data: Any, index: int) -> str | None:
    stages = data.get("stages") if isinstance(data, dict) else None
    stage = stages[index] if isinstance(stages, (list, tuple)) and index < len(stages) else None
    name = stage.get("name") if isinstance(stage, dict) else None
    return name if isinstance(name, str) else None


def _suggest_recipe(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    names = [str(recipe) for recipe in sorted(folder.glob("*.y*ml"))]
    return suggest(str(path), names) if names else "give the path of a YAML recipe"


class _OverrideError(Exception):
    """A --set option that cannot be applied."""


def apply_overrides(data: Any, overrides: Sequence[str]) -> tuple[dict[KeyPath, str], list[str]]:
    """Set each `dotted.key=value` in the data of a recipe, in place.

    Returns the option behind each key path that was set, and an error for each option that could not be applied.
    """
    applied: dict[KeyPath, str] = {}
    errors: list[str] = []
    for override in overrides:
        option = f"--set {override}"
        try:
            applied[_apply_override(data, override, option)] = option
        except _OverrideError as error:
            errors.append(f"{option}: {error}")
    return applied, errors


def _apply_override(data: Any, override: str, option: str) -> KeyPath:
    dotted, equals, raw_value = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise _OverrideError("is not KEY=VALUE; write it as in --set stages.all.epochs=3")
    value = parse_yaml(raw_value, option).data if raw_value.strip() else None
    key_path: KeyPath = ()
    for key in keys[:-1]:
        parent, parent_path = data, key_path
        part = _resolve_key(parent, parent_path, key)
        key_path = (*parent_path, part)
        if isinstance(parent, dict) and not isinstance(parent.get(key), (dict, list)):
            if key not in known_keys(parent_path):
                raise _OverrideError(f"{format_key_path(key_path)}: {describe_unknown_key(key_path)}")
            parent[key] = {}
        data = parent[part]
    last = _resolve_key(data, key_path, keys[-1])
    data[last] = value
    return (*key_path, last)


def _resolve_key(data: Any, key_path: KeyPath, key: str) -> str | int:
    """Return the key of a mapping or the index of a list item; a stage is found by its name too."""
    if isinstance(data, dict):
        return key
    location = format_key_path((*key_path, key))
    if not isinstance(data, list):
        raise _OverrideError(f"{location}: does not exist; {format_key_path(key_path)} is a single value")
    names: dict[str, int] = {item["name"]: index for index, item in reversed([*enumerate(data)]) if _has_name(item)}
    if key_path == ("stages",) and key in names:
        return names[key]
    if key.isdecimal() and int(key) < len(data):
        return int(key)
    hint = suggest(key, names) if names else f"the list has {len(data)} items, counted from 0"
    raise _OverrideError(f"{location}: does not exist; {hint}")


def _has_name(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str)
