"""The schema as a JSON Schema: what editors, programs and the reference in docs/recipe.md read."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ftcli.recipe.schema import Recipe
from ftcli.recipe.schema.types import allow_bare_name

_BARE_NAME_MARKER = "name may stand alone"
# \w means all scripts in Python and ASCII in editors; without naming letters both read this the same way.
_PORTABLE_PATTERNS = {r"^\w[\w.-]*$": r"^[^\u0000-/:-@\[-^`{-\u007f][^\u0000-,/:-@\[-^`{-\u007f]*$"}


def build_json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe as YAML holds it, with descriptions, defaults, choices and bounds.

    It says what the checks of single values say, with names alone where a mapping with a name may stand; what two
    values must be to one another it cannot say. No keyword differs from draft 7 but $defs, so that editors that know
    only that read it too.
    """
    schema = Recipe.model_json_schema(schema_generator=_SchemaGenerator)
    definitions = schema.pop("$defs")
    simplified = {**_simplify(schema, definitions), "title": "ftcli recipe"}
    return {
        "$schema": _SchemaGenerator.schema_dialect,
        **simplified,
        "$defs": {key: _simplify(definitions[key], definitions) for key in definitions},
    }


class _SchemaGenerator(GenerateJsonSchema):
    """pydantic's own, with a mark where names stand alone, and with defaults that are made anew."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" in schema:
            return schema["default_factory"]()  # type: ignore[call-arg]  # none of ours takes what was validated
        return super().get_default_value(schema)

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        json_schema = super().function_before_schema(schema)
        return (
            {**json_schema, _BARE_NAME_MARKER: True}
            if schema["function"]["function"] is allow_bare_name
            else json_schema
        )


def _simplify(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_simplify(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    simplified: dict[str, Any] = {}
    for key, value in node.items():
        match key:
            case "properties":
                simplified[key] = {name: _simplify(inner, definitions) for name, inner in value.items()}
            case "title":  # the name of a class or key in other letters
                continue
            case "default":
                simplified[key] = value
            case "description":
                simplified[key] = " ".join(value.split())
            case "pattern":
                simplified[key] = _PORTABLE_PATTERNS.get(value, value)
            case "prefixItems":  # our tuples hold values of one kind, and the lengths are told beside
                assert all(item == value[0] for item in value)
                simplified["items"] = _simplify(value[0], definitions)
            case _:
                simplified[key] = _simplify(value, definitions)
    simplified.pop("discriminator", None)  # OpenAPI's
    if simplified.get("type") == "array":  # behind a validator pydantic writes the bounds of a list as those of text
        lengths = {"minLength": "minItems", "maxLength": "maxItems"}
        simplified = {lengths.get(key, key): value for key, value in simplified.items()}
    if simplified.pop(_BARE_NAME_MARKER, False):
        choices = [resolve_ref(definitions, choice) for choice in simplified["oneOf"]]
        bare_names = [part["properties"]["name"]["const"] for part in choices if part["required"] == ["name"]]
        simplified["oneOf"].insert(
            0, {"enum": bare_names, "description": "A name alone: every setting has its default."}
        )
    return simplified


def resolve_ref(definitions: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference of the JSON Schema refers to, among its $defs."""
    definition: dict[str, Any] = definitions[node["$ref"].rpartition("/")[2]]
    return definition
