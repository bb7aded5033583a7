"""The keys of a recipe, read off its JSON Schema and told in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftcli.recipe.reference import find_part

Node = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a mapping. `place` is where it stands without stages' names and list indices, as in stages.epochs;
    `default` is YAML, None where the key is needed; `settles` is false where it only holds other keys."""

    place: str
    may_be: str
    default: str | None
    description: str
    settles: bool


@dataclass(frozen=True)
class Mapping:
    """A mapping of a recipe: one of its parts, or what may stand at a place under a name. `names` are the
    alternatives that its keys choose between."""

    place: str
    name: str
    description: str
    keys: tuple[Key, ...]
    names: tuple[Mapping, ...]


def list_keys(mapping: Mapping) -> Iterator[Key]:
    """Every key of a mapping and of those within; one that several alternatives have comes as often."""
    yield from mapping.keys
    for alternative in mapping.names:
        yield from list_keys(alternative)


class Reader:
    """Reads mappings off a JSON Schema that `describe_recipe` made."""

    def __init__(self, document: Node) -> None:
        self._document = document
        self._parts: dict[str, Node] = document["$defs"]

    def read_top(self) -> Mapping:
        """The keys at the top of a recipe."""
        return self._read(self._document, "", "")

    def read_parts(self) -> tuple[Mapping, ...]:
        """What stands below those keys at the top that hold other keys, in order; of a key below which mappings of
        several kinds may stand, each is told apart by a key that the first lacks."""
        return tuple(
            self._read(part, name, self._name_part(name, parts, part))
            for name, parts in ((name, self._list_parts(node)) for name, node in self._document["properties"].items())
            for part in parts
        )

    def _read(self, part: Node, place: str, name: str) -> Mapping:
        keys: list[Key] = []
        names: list[Mapping] = []
        for key, node in part["properties"].items():
            if key == "name" and "const" in node:
                continue  # its name, by which it was chosen
            inner = f"{place}.{key}".lstrip(".")
            keys.append(self._read_key(part, key, inner))
            for choice in self._choices(node):
                below = find_part(self._parts, choice)
                if "const" in below["properties"].get("name", {}):
                    names.append(self._read(below, inner, below["properties"]["name"]["const"]))
                elif place:
                    within = self._read(below, inner, key)
                    keys += within.keys
                    names += within.names
        return Mapping(place, name, part.get("description", ""), tuple(keys), tuple(names))

    def _read_key(self, part: Node, key: str, place: str) -> Key:
        node = part["properties"][key]
        default = None if key in part.get("required", ()) else self._tell_default(node)
        settles = not self._list_parts(node)
        may_be = self._tell(node) if settles or "." in place else self._link_part(place, node)
        return Key(place, may_be, default, node["description"], settles)

    def _link_part(self, name: str, node: Node) -> str:
        several = f"a list{tell_length(node)}, each " if "items" in node else ""
        parts = self._list_parts(node)
        others = [self._name_part(name, parts, part) for part in parts[1:]]
        links = [f"[below](#{name})", *(f"[{other}](#{link_name(other)})" for other in others)]
        return f"{several}a mapping, {join_words(links)}"

    def _name_part(self, name: str, parts: list[Node], part: Node) -> str:
        own = [key for key in part["required"] if key not in parts[0]["properties"]] if part is not parts[0] else []
        return f"{name} with {own[0]}" if own else name

    def _choices(self, node: Node) -> list[Node]:
        """The parts that may stand at a place, or be items of a list there."""
        if "$ref" in node:
            return [node]
        inner = [*node.get("oneOf", ()), *node.get("anyOf", ()), *([node["items"]] if "items" in node else ())]
        return [found for choice in inner for found in self._choices(choice)]

    def _only_part(self, node: Node) -> Node | None:
        """The one part that alone may stand at a place, or fill a list there, if null is passed over."""
        alternatives = [choice for choice in node.get("anyOf", [node]) if choice != {"type": "null"}]
        only = alternatives[0] if len(alternatives) == 1 else {}
        only = only.get("items", only) if only.get("type") == "array" else only
        return find_part(self._parts, only) if "$ref" in only else None

    def _list_parts(self, node: Node) -> list[Node]:
        """The parts of which one must stand at a place, or fill a list there, if null is passed over and they are not
        told apart by names."""
        only = self._only_part(node)
        if only is not None:
            return [only]
        choices = node.get("items", {}).get("oneOf", ())
        if not all("$ref" in choice for choice in choices):
            return []
        parts = [find_part(self._parts, choice) for choice in choices]
        return [] if any("const" in part["properties"]["name"] for part in parts) else parts

    def _tell_default(self, node: Node) -> str:
        """A default as YAML; a mapping that has nothing but defaults beside its name is told by the name."""
        default = node["default"]
        if isinstance(default, dict) and self._only_part(node) is not None:
            return "{}"
        if not (isinstance(default, dict) and "name" in default):
            return tell_value(default)
        parts = [find_part(self._parts, choice)["properties"] for choice in self._choices(node)]
        chosen = next(fields for fields in parts if fields["name"]["const"] == default["name"])
        plain = all(chosen[key].get("default") == value for key, value in default.items() if key != "name")
        return str(default["name"]) if plain else tell_value(default)

    def _tell(self, node: Node) -> str:
        """What may stand at a place, in words, Markdown."""
        choices = [*node.get("oneOf", ()), *node.get("anyOf", ())]
        if not choices:
            return self._tell_one(node)
        named = [find_part(self._parts, choice)["properties"] for choice in choices if "$ref" in choice]
        names = [fields["name"]["const"] for fields in named if "const" in fields.get("name", {})]
        if not names:
            return ", or ".join(self._tell_one(choice) for choice in choices)
        alone: list[str] = next((choice["enum"] for choice in choices if "enum" in choice), [])
        links = join_words([f"[`{name}`](#{name})" for name in names])
        if set(alone) == set(names):
            return f"a name, alone or in a mapping with its settings: {links}"
        few = f"; {join_words([f'`{name}`' for name in names if name in alone])} may stand alone" if alone else ""
        return f"a mapping with a name and its settings: {links}{few}"

    def _tell_one(self, node: Node) -> str:
        match node:
            case {"$ref": _}:
                part = find_part(self._parts, node)
                return f"a mapping with {join_words([f'`{key}`' for key in part['properties']], 'and')}"
            case {"enum": values}:
                return join_words([f"`{value}`" for value in values])
            case {"const": value}:
                return f"`{value}`"
            case {"type": "boolean"}:
                return "`true` or `false`"
            case {"type": "null"}:
                return "`null`"
            case {"type": "integer"}:
                return f"a whole number{tell_bounds(node)}"
            case {"type": "number"}:
                return f"a number{tell_bounds(node)}"
            case {"type": "array", "items": items}:
                return f"a list{tell_length(node)}, each {self._tell(items)}"
            case {"type": "object", "additionalProperties": value}:
                return f"a mapping, each value {self._tell(value)}"
            case {"type": "string", "pattern": _, "maxLength": most}:
                return f"letters, digits, `.`, `_` and `-`, at most {most}"
            case {"type": "string", "pattern": pattern}:
                return f"text like `{pattern}`"
            case {"type": "string"}:
                return "text"
            case _:
                raise ValueError(f"no words for {json.dumps(node)}")


def link_name(name: str) -> str:
    """The anchor of the section of that name."""
    return name.lower().replace(" ", "-")


def join_words(words: list[str], last: str = "or") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def tell_bounds(node: Node) -> str:
    """The bounds of a number in words."""
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {tell_number(low)} to {tell_number(high)}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    told = [f"{word} {tell_number(node[key])}" for key, word in words.items() if key in node]
    return f" {'of ' * (told[0].startswith('at'))}{' and '.join(told)}" if told else ""


def tell_number(value: float) -> str:
    exact = math.log2(value) if value > 1e15 else 0.0
    return f"2^{exact:.0f}" if exact else f"{value:,.10g}"


def tell_length(node: Node) -> str:
    low, high = node.get("minItems"), node.get("maxItems")
    if low == high:
        return "" if low is None else f" of {low}"
    return f" of at least {low}" if high is None else f" of at most {high}"


def tell_value(value: Any) -> str:
    """A value as YAML writes it on one line, with numbers of at most four digits."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {tell_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(tell_value, value)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
