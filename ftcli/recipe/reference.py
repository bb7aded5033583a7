"""The schema as a JSON Schema: what editors, programs and the reference in docs/recipe.md read."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ftcli.recipe.schema import Recipe
from ftcli.recipe.schema.parts import name_alone

_ALONE = "name may stand alone"
# \w means all scripts in Python and ASCII in editors; without naming letters both read this the same way.
_WORDS = {r"^\w[\w.-]*$": r"^[^\u0000-/:-@\[-^`{-\u007f][^\u0000-,/:-@\[-^`{-\u007f]*$"}


def describe_recipe() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe as YAML holds it, with descriptions, defaults, choices and bounds.

    It says what the checks of single values say, with names alone where a mapping with a name may stand; what two
    values must be to one another it cannot say. No keyword differs from draft 7 but $defs, so that editors that know
    only that read it too.
    """
    plain = Recipe.model_json_schema(schema_generator=_Writer)
    parts = plain.pop("$defs")
    adapted = {**_adapt(plain, parts), "title": "ftcli recipe"}
    return {"$schema": _Writer.schema_dialect, **adapted, "$defs": {key: _adapt(parts[key], parts) for key in parts}}


class _Writer(GenerateJsonSchema):
    """pydantic's own, with a mark where names stand alone, and with defaults that are made anew."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" in schema:
            return schema["default_factory"]()  # type: ignore[call-arg]  # none of ours takes what was validated
        return super().get_default_value(schema)

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        plain = super().function_before_schema(schema)
        return {**plain, _ALONE: True} if schema["function"]["function"] is name_alone else plain


def _adapt(node: Any, parts: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_adapt(item, parts) for item in node]
    if not isinstance(node, dict):
        return node
    adapted: dict[str, Any] = {}
    for key, value in node.items():
        match key:
            case "properties":
                adapted[key] = {name: _adapt(inner, parts) for name, inner in value.items()}
            case "title":  # the name of a class or key in other letters
                continue
            case "default":
                adapted[key] = value
            case "description":
                adapted[key] = " ".join(value.split())
            case "pattern":
                adapted[key] = _WORDS.get(value, value)
            case "prefixItems":  # our tuples hold values of one kind, and the lengths are told beside
                assert all(item == value[0] for item in value)
                adapted["items"] = _adapt(value[0], parts)
            case _:
                adapted[key] = _adapt(value, parts)
    adapted.pop("discriminator", None)  # OpenAPI's
    if adapted.get("type") == "array":  # behind a validator pydantic writes the bounds of a list as those of text
        lengths = {"minLength": "minItems", "maxLength": "maxItems"}
        adapted = {lengths.get(key, key): value for key, value in adapted.items()}
    if adapted.pop(_ALONE, False):
        named = [find_part(parts, choice) for choice in adapted["oneOf"]]
        enough = [part["properties"]["name"]["const"] for part in named if part["required"] == ["name"]]
        adapted["oneOf"].insert(0, {"enum": enough, "description": "A name alone: every setting has its default."})
    return adapted


def find_part(parts: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference of the JSON Schema refers to, among its $defs."""
    part: dict[str, Any] = parts[node["$ref"].rpartition("/")[2]]
    return part
