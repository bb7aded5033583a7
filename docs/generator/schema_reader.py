"""Keys of a recipe and their descriptions, read from its JSON Schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftcli.recipe.json_schema import resolve_ref

Node = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a mapping.

    `key_path` has no stage names and list indices, as in stages.epochs. `default` is YAML, or None if the key is
    required. `is_leaf` is false if the key only contains other keys.
    """

    key_path: str
    allowed: str
    default: str | None
    description: str
    is_leaf: bool


@dataclass(frozen=True)
class Section:
    """A mapping of a recipe. `alternatives` are the named mappings that its keys choose from, such as optimizers."""

    key_path: str
    name: str
    description: str
    keys: tuple[Key, ...]
    alternatives: tuple[Section, ...]


def list_keys(section: Section) -> Iterator[Key]:
    """Yield the keys of a section and of its alternatives; a key of several alternatives is repeated."""
    yield from section.keys
    for alternative in section.alternatives:
        yield from list_keys(alternative)


class SchemaReader:
    """A reader of the JSON Schema from `build_json_schema`."""

    def __init__(self, schema: Node) -> None:
        self._schema = schema
        self._definitions: dict[str, Node] = schema["$defs"]

    def read_top_level(self) -> Section:
        """Return the section of the top-level keys."""
        return self._read_section(self._schema, "", "")

    def read_sections(self) -> tuple[Section, ...]:
        """Return the sections of the top-level keys that contain other keys, in order.

        If a key allows several mappings, each further one is named by a required key that the first lacks.
        """
        return tuple(
            self._read_section(definition, name, self._section_name(name, definitions, definition))
            for name, definitions in (
                (name, self._list_definitions(node)) for name, node in self._schema["properties"].items()
            )
            for definition in definitions
        )

    def _read_section(self, definition: Node, key_path: str, name: str) -> Section:
        keys: list[Key] = []
        alternatives: list[Section] = []
        for key, node in definition["properties"].items():
            if key == "name" and "const" in node:
                continue  # the name of the alternative
            child_path = f"{key_path}.{key}".lstrip(".")
            keys.append(self._read_key(definition, key, child_path))
            for choice in self._list_choices(node):
                child = resolve_ref(self._definitions, choice)
                if "const" in child["properties"].get("name", {}):
                    alternatives.append(self._read_section(child, child_path, child["properties"]["name"]["const"]))
                elif key_path:
                    nested = self._read_section(child, child_path, key)
                    keys += nested.keys
                    alternatives += nested.alternatives
        return Section(key_path, name, definition.get("description", ""), tuple(keys), tuple(alternatives))

    def _read_key(self, definition: Node, key: str, key_path: str) -> Key:
        node = definition["properties"][key]
        default = None if key in definition.get("required", ()) else self._format_default(node)
        is_leaf = not self._list_definitions(node)
        allowed = self._describe(node) if is_leaf or "." in key_path else self._link_sections(key_path, node)
        return Key(key_path, allowed, default, node["description"], is_leaf)

    def _link_sections(self, name: str, node: Node) -> str:
        list_prefix = f"a list{format_length(node)}, each " if "items" in node else ""
        definitions = self._list_definitions(node)
        others = [self._section_name(name, definitions, definition) for definition in definitions[1:]]
        links = [f"[below](#{name})", *(f"[{other}](#{section_anchor(other)})" for other in others)]
        return f"{list_prefix}a mapping, {join_words(links)}"

    def _section_name(self, name: str, definitions: list[Node], definition: Node) -> str:
        distinguishing_keys = (
            [key for key in definition["required"] if key not in definitions[0]["properties"]]
            if definition is not definitions[0]
            else []
        )
        return f"{name} with {distinguishing_keys[0]}" if distinguishing_keys else name

    def _list_choices(self, node: Node) -> list[Node]:
        """Return the references of a node, its alternatives and its list items."""
        if "$ref" in node:
            return [node]
        inner = [*node.get("oneOf", ()), *node.get("anyOf", ()), *([node["items"]] if "items" in node else ())]
        return [reference for choice in inner for reference in self._list_choices(choice)]

    def _single_definition(self, node: Node) -> Node | None:
        """Return the only definition that a node or its list items allow, apart from null, or None."""
        alternatives = [choice for choice in node.get("anyOf", [node]) if choice != {"type": "null"}]
        only = alternatives[0] if len(alternatives) == 1 else {}
        only = only.get("items", only) if only.get("type") == "array" else only
        return resolve_ref(self._definitions, only) if "$ref" in only else None

    def _list_definitions(self, node: Node) -> list[Node]:
        """Return the definitions that a node or its list items allow, apart from null, unless chosen by name."""
        only = self._single_definition(node)
        if only is not None:
            return [only]
        choices = node.get("items", {}).get("oneOf", ())
        if not all("$ref" in choice for choice in choices):
            return []
        definitions = [resolve_ref(self._definitions, choice) for choice in choices]
        return [] if any("const" in definition["properties"]["name"] for definition in definitions) else definitions

    def _format_default(self, node: Node) -> str:
        """Return a default as YAML; a mapping with a name and only defaults is shortened to the name."""
        default = node["default"]
        if isinstance(default, dict) and self._single_definition(node) is not None:
            return "{}"
        if not (isinstance(default, dict) and "name" in default):
            return format_value(default)
        choices = [resolve_ref(self._definitions, choice)["properties"] for choice in self._list_choices(node)]
        chosen = next(fields for fields in choices if fields["name"]["const"] == default["name"])
        is_default = all(chosen[key].get("default") == value for key, value in default.items() if key != "name")
        return str(default["name"]) if is_default else format_value(default)

    def _describe(self, node: Node) -> str:
        """Return the allowed values of a node as Markdown."""
        choices = [*node.get("oneOf", ()), *node.get("anyOf", ())]
        if not choices:
            return self._describe_single(node)
        properties = [resolve_ref(self._definitions, choice)["properties"] for choice in choices if "$ref" in choice]
        names = [fields["name"]["const"] for fields in properties if "const" in fields.get("name", {})]
        if not names:
            return ", or ".join(self._describe_single(choice) for choice in choices)
        bare_names: list[str] = next((choice["enum"] for choice in choices if "enum" in choice), [])
        links = join_words([f"[`{name}`](#{name})" for name in names])
        if set(bare_names) == set(names):
            return f"a name, or a mapping with a name and settings: {links}"
        bare_note = (
            f"; {join_words([f'`{name}`' for name in names if name in bare_names])} can be given as a name alone"
            if bare_names
            else ""
        )
        return f"a mapping with a name and settings: {links}{bare_note}"

    def _describe_single(self, node: Node) -> str:
        match node:
            case {"$ref": _}:
                definition = resolve_ref(self._definitions, node)
                return f"a mapping with {join_words([f'`{key}`' for key in definition['properties']], 'and')}"
            case {"enum": values}:
                return join_words([f"`{value}`" for value in values])
            case {"const": value}:
                return f"`{value}`"
            case {"type": "boolean"}:
                return "`true` or `false`"
            case {"type": "null"}:
                return "`null`"
            case {"type": "integer"}:
                return f"a whole number{format_bounds(node)}"
            case {"type": "number"}:
                return f"a number{format_bounds(node)}"
            case {"type": "array", "items": items}:
                return f"a list{format_length(node)}, each {self._describe(items)}"
            case {"type": "object", "additionalProperties": value}:
                return f"a mapping, each value {self._describe(value)}"
            case {"type": "string", "pattern": _, "maxLength": most}:
                return f"letters, digits, `.`, `_` and `-`, at most {most}"
            case {"type": "string", "pattern": pattern}:
                return f"text matching `{pattern}`"
            case {"type": "string"}:
                return "text"
            case _:
                raise ValueError(f"no description for {json.dumps(node)}")


def section_anchor(name: str) -> str:
    """Return the anchor of a section."""
    return name.lower().replace(" ", "-")


def join_words(words: list[str], last: str = "or") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def format_bounds(node: Node) -> str:
    """Return the bounds of a number as text."""
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {format_number(low)} to {format_number(high)}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {format_number(node[key])}" for key, word in words.items() if key in node]
    return f" {'of ' * (bounds[0].startswith('at'))}{' and '.join(bounds)}" if bounds else ""


def format_number(value: float) -> str:
    exact = math.log2(value) if value > 1e15 else 0.0
    return f"2^{exact:.0f}" if exact else f"{value:,.10g}"


def format_length(node: Node) -> str:
    low, high = node.get("minItems"), node.get("maxItems")
    if low == high:
        return "" if low is None else f" of {low}"
    return f" of at least {low}" if high is None else f" of at most {high}"


def format_value(value: Any) -> str:
    """Return a value as YAML on one line, with at most four digits per number."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
