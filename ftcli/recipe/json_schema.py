"""JSON Schema of recipes, for editors, other programs and docs/recipe.md."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ftcli.recipe.schema import Recipe
from ftcli.recipe.schema.types import allow_bare_name

_BARE_NAME_MARKER = "x-allow-bare-name"
# \w matches all scripts in Python and ASCII only in editors; an excluded range is read alike by both.
_PORTABLE_PATTERNS = {r"^\w[\w.-]*$": r"^[^\u0000-/:-@\[-^`{-\u007f][^\u0000-,/:-@\[-^`{-\u007f]*$"}


def build_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe, with descriptions, defaults, choices and bounds.

    It covers the checks of single values, but not those that compare two values. Except for $defs, all keywords exist
    in draft 7, for editors that know only that draft.
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
    """pydantic's generator with a marker for bare names, and with the values of default factories."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" in schema:
            return schema["default_factory"]()  # type: ignore[call-arg]  # no factory of the schema takes the validated data
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
            case "title":  # repeats the name of the class or key
                continue
            case "default":
                simplified[key] = value
            case "description":
                simplified[key] = " ".join(value.split())
            case "pattern":
                simplified[key] = _PORTABLE_PATTERNS.get(value, value)
            case "prefixItems":  # all items of a tuple have the same type here; minItems and maxItems give its length
                assert all(item == value[0] for item in value)
                simplified["items"] = _simplify(value[0], definitions)
            case _:
                simplified[key] = _simplify(value, definitions)
    simplified.pop("discriminator", None)  # OpenAPI's
    if (
        simplified.get("type") == "array"
    ):  # after a validator, pydantic writes the bounds of a list as those of a string
        lengths = {"minLength": "minItems", "maxLength": "maxItems"}
        simplified = {lengths.get(key, key): value for key, value in simplified.items()}
    if simplified.pop(_BARE_NAME_MARKER, False):
        choices = [resolve_ref(definitions, choice) for choice in simplified["oneOf"]]
        bare_names = [part["properties"]["name"]["const"] for part in choices if part["required"] == ["name"]]
        simplified["oneOf"].insert(0, {"enum": bare_names, "description": "A name, with the default of every setting."})
    return simplified


def resolve_ref(definitions: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return the definition that a $ref refers to."""
    definition: dict[str, Any] = definitions[node["$ref"].rpartition("/")[2]]
    return definition
