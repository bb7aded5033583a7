"""What the schema refuses, said in sentences."""

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
    "on_corrupt_image": "on_corrupt_image",
    "solver": "fit",
    "every": "step_size",
}


def describe_error(error: ErrorDetails) -> str:
    """One sentence for one of pydantic's errors: the value, what is wrong with it and what to give instead."""
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            key = str(error["loc"][-1])
            if key in _RENAMED_KEYS:
                return f"unknown key; it is called {_RENAMED_KEYS[key]} now"
            return f"unknown key; {suggest(key, known_keys(error['loc'][:-1]))}"
        case "missing":
            return "is missing; give it a value"
        case "union_tag_not_found":
            return f"has no name; give one of {_join_tags(models_at(error['loc']))}"
        case "literal_error" | "enum":
            allowed = [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")]
            return _describe_choice(value, allowed)
        case "union_tag_invalid":
            allowed = [part.strip().strip("'") for part in context["expected_tags"].split(",")]
            return _describe_choice(context["tag"], allowed)
        case "int_type" | "int_from_float":
            return f"{format_value(value)} is not a whole number; give one such as 5"
        case "float_type":
            return f"{format_value(value)} is not a number; give one such as 0.001"
        case "finite_number":
            return f"{format_value(value)} is not a finite number; give one such as 0.001"
        case "bool_type":
            return f"{format_value(value)} is neither true nor false; give one of them"
        case "string_type":
            return f"{format_value(value)} is not text; put it in quotes if it is meant as a name"
        case "string_too_long":
            return f"{format_value(value)} is too long; use at most {context['max_length']} characters"
        case "string_too_short":
            return "is empty; give it a value"
        case "string_pattern_mismatch" if "{64}" in context["pattern"]:
            return (
                f"{format_value(value)} is no SHA-256; give its 64 hexadecimal digits, as `sha256sum FILE` tells them"
            )
        case "string_pattern_mismatch":
            return f"{format_value(value)} is no name; use letters, digits, '.', '_' and '-', and begin with a letter or digit"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{format_value(value)} is out of range; give a number {_describe_bound(context)}"
        case "tuple_type":
            return f"{format_value(value)} is not a list; write it as [a, b]"
        case "too_short" | "too_long":
            return f"has {context['actual_length']} items; give {_describe_length(context)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{format_value(value)} is not a mapping; give keys with values below it"
        case "invalid_key":
            return f"the key {format_value(error['loc'][-1])} is no text; put it in quotes"
        case "value_error":
            is_mapping = isinstance(value, dict) or (
                isinstance(value, list) and any(isinstance(v, dict) for v in value)
            )
            return str(context["error"]) if is_mapping else f"{format_value(value)}: {context['error']}"
        case _:
            return f"{format_value(value)}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def known_keys(key_path: KeyPath) -> set[str]:
    """The keys that the schema knows at a place (list indices and the tags of unions are passed over)."""
    return {name for model in models_at(key_path) for name in model.model_fields}


def models_at(key_path: KeyPath) -> list[type[pydantic.BaseModel]]:
    """The parts of the schema that may stand at a place: several where a name chooses between them."""
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


def _describe_choice(value: Any, allowed: list[str]) -> str:
    suggestion = suggest(str(value), allowed) if isinstance(value, str) else ""
    ending = f"; {suggestion}" if suggestion.startswith("did you mean") else ""
    return f"{format_value(value)} is not one of {', '.join(allowed)}{ending}"


def _describe_bound(context: dict[str, Any]) -> str:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    return next(f"{word} {context[key]:g}" for key, word in words.items() if key in context)


def _describe_length(context: dict[str, Any]) -> str:
    if "min_length" in context and context["actual_length"] < context["min_length"]:
        return f"at least {context['min_length']}"
    return f"at most {context['max_length']}"


def format_value(value: Any, max_length: int = 60) -> str:
    """A value as it may stand in a sentence, on one line and not too long."""
    if isinstance(value, str):
        text = repr(value)
    else:
        plain = value if isinstance(value, (dict, list, tuple, int, float, bool, type(None))) else str(value)
        text = json.dumps(plain, ensure_ascii=False, default=str).replace("NaN", "nan").replace("Infinity", "inf")
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
