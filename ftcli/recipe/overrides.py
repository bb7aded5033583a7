"""Changes to a recipe from the command line: --set KEY=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftcli.errors import suggest
from ftcli.recipe.parsing import KeyPath, format_key_path, parse_yaml
from ftcli.recipe.validation import describe_unknown_key, known_keys


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
