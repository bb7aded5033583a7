"""Sentences for the errors of the schema."""

from __future__ import annotations

import json
import typing
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from ftcli.errors import suggest
from ftcli.recipe import schema
from ftcli.recipe.parsing import KeyPath

_RENAMED_KEYS = {
    "workers": "num_workers",
    "fetch": "download",
    "on_bad_image": "on_corrupt_image",
    "solver": "fit",
    "every": "step_size",
}
_RENAMED_VALUES = {
    ("normalize", "weights"): "pretrained",
    ("normalize", "data"): "dataset",
    ("resize", "shorter"): "crop",
    ("fit", "logistic"): "logistic_regression",
}


def is_renamed(error: ErrorDetails) -> bool:
    """Return whether an error reports a missing key that the recipe has under its old name."""
    if error["type"] != "missing" or not isinstance(error["input"], dict):
        return False
    return any(new == error["loc"][-1] and old in error["input"] for old, new in _RENAMED_KEYS.items())


def describe_error(error: ErrorDetails) -> str:
    """Return a sentence for one of pydantic's errors: the value, what is wrong with it and what to give instead."""
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return describe_unknown_key(error["loc"])
        case "missing":
            return "is missing; give it a value"
        case "union_tag_not_found":
            return f"has no name; give one of {_join_tags(models_at(error['loc']))}"
        case "literal_error" | "enum":
            allowed = [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")]
            return _describe_choice(value, allowed, error["loc"])
        case "union_tag_invalid":
            allowed = [part.strip().strip("'") for part in context["expected_tags"].split(",")]
            return _describe_choice(context["tag"], allowed, error["loc"])
        case "invalid_key":
            return f"key {_format_value(error['loc'][-1])} is not a string; put it in quotes"
        case "too_short" | "too_long":
            return f"has {context['actual_length']} items; give {_describe_length(context)}"
        case "string_too_short":
            return "is empty; give it a value"
        case "value_error":
            is_mapping = isinstance(value, dict) or (
                isinstance(value, list) and any(isinstance(v, dict) for v in value)
            )
            return str(context["error"]) if is_mapping else f"{_format_value(value)} {context['error']}"
        case _:
            return f"{_format_value(value)} {_describe_value_error(error, context)}"


def describe_unknown_key(loc: KeyPath) -> str:
    """Return a sentence for a key that the schema does not have, with its new or a similar name."""
    key, known = str(loc[-1]), known_keys(loc[:-1])
    if _RENAMED_KEYS.get(key) in known:
        return f"unknown key; it was renamed to {_RENAMED_KEYS[key]}"
    return f"unknown key; {suggest(key, known)}"


def _describe_value_error(error: ErrorDetails, context: dict[str, Any]) -> str:
    match error["type"]:
        case "int_type" | "int_from_float":
            return "is not an integer; give one such as 5"
        case "float_type":
            return "is not a number; give one such as 0.001"
        case "finite_number":
            return "is not a finite number; give one such as 0.001"
        case "bool_type":
            return "is neither true nor false; give one of them"
        case "string_type":
            return "is not a string; put it in quotes if it is meant as a name"
        case "string_too_long":
            return f"is too long; use at most {context['max_length']} characters"
        case "string_pattern_mismatch" if "{64}" in context["pattern"]:
            return "is not a SHA-256; give the 64 hexadecimal digits that `sha256sum FILE` prints"
        case "string_pattern_mismatch":
            return "is not a valid name; use letters, digits, '.', '_' and '-', and begin with a letter or digit"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"is out of range; give a number {_describe_bound(context)}"
        case "tuple_type":
            return "is not a list; write it as [a, b]"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "is not a mapping; give keys with values below it"
        case _:
            return f"is not valid: {error['msg'][:1].lower()}{error['msg'][1:]}"


def known_keys(key_path: KeyPath) -> set[str]:
    """Return the keys that the schema allows at a key path; list indices and tags of unions are ignored."""
    return {name for model in models_at(key_path) for name in model.model_fields}


def models_at(key_path: KeyPath) -> list[type[pydantic.BaseModel]]:
    """Return the models that the schema allows at a key path: several where a name chooses between them."""
    models: list[type[pydantic.BaseModel]] = [schema.Recipe]
    for part in key_path:
        fields = [model.model_fields[part] for model in models if isinstance(part, str) and part in model.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models_in_annotation(field.annotation)]
        elif isinstance(part, str):
            models = [model for model in models if part in (model.__name__, *_tags(model))] or models
    return models


def _models_in_annotation(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in_annotation(inner)]


def _tags(model: type[pydantic.BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("name")
    return typing.get_args(field.annotation) if field else ()


def _join_tags(models: list[type[pydantic.BaseModel]]) -> str:
    return ", ".join(tag for model in models for tag in _tags(model))


def _describe_choice(value: Any, allowed: list[str], loc: KeyPath) -> str:
    for (key, old), new in _RENAMED_VALUES.items():
        if key in loc and value == old:
            return f"{_format_value(value)} is not one of {', '.join(allowed)}; it was renamed to {new!r}"
    suggestion = suggest(str(value), allowed) if isinstance(value, str) else ""
    ending = f"; {suggestion}" if suggestion.startswith("did you mean") else ""
    return f"{_format_value(value)} is not one of {', '.join(allowed)}{ending}"


def _describe_bound(context: dict[str, Any]) -> str:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    return next(f"{word} {context[key]:g}" for key, word in words.items() if key in context)


def _describe_length(context: dict[str, Any]) -> str:
    if "min_length" in context and context["actual_length"] < context["min_length"]:
        return f"at least {context['min_length']}"
    return f"at most {context['max_length']}"


def _format_value(value: Any, max_length: int = 60) -> str:
    """Return a value as text for a message, on one line of at most `max_length` characters."""
    if isinstance(value, str):
        text = repr(value)
    else:
        plain = value if isinstance(value, (dict, list, tuple, int, float, bool, type(None))) else str(value)
        text = json.dumps(plain, ensure_ascii=False, default=str).replace("NaN", "nan").replace("Infinity", "inf")
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
