"""YAML with the line and column of every key and value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from ftcli.errors import RecipeError

_MAX_DEPTH = 20
_TAGS = {MappingNode: ("map",), SequenceNode: ("seq",), ScalarNode: ("null", "bool", "int", "float", "str")}
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_TAG_PREFIX = "tag:yaml.org,2002:"

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead from the top to a value."""


@dataclass(frozen=True)
class Position:
    """A line and a column, both counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class ParsedYaml:
    """Plain data with the positions of its keys and values."""

    data: Any
    key_positions: dict[KeyPath, Position]
    value_positions: dict[KeyPath, Position]


class _Composer(Composer):
    """A composer without aliases, which let a small file grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            event = self.parser.peek_event()
            raise _AliasError(None, None, f"alias *{event.anchor}", event.start_mark)
        return super().compose_node(parent, index)


class _AliasError(MarkedYAMLError):
    """An alias, which a recipe may not contain."""


class _Resolver(VersionedResolver):
    """The scalars of YAML 1.2 without the extensions of ruamel.yaml: 2026-11-22, 1_000, 010, << and = are text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Tag:
        tag: Tag = super().resolve(kind, value, implicit)
        match str(tag).removeprefix(_TAG_PREFIX):
            case "timestamp" | "merge" | "value":
                return self.DEFAULT_SCALAR_TAG
            case "int" if not _DECIMAL.fullmatch(value):
                return self.DEFAULT_SCALAR_TAG
            case "float" if "_" in value:
                return self.DEFAULT_SCALAR_TAG
        return tag


class _Representer(SafeRepresenter):
    """A representer without aliases, whose output YAML 1.1 and YAML 1.2 read alike."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_str(self, data: str) -> ScalarNode:
        is_plain = data.isprintable() and all(
            resolver.resolve(ScalarNode, data, (True, False)) == resolver.DEFAULT_SCALAR_TAG for resolver in _RESOLVERS
        )
        return self.represent_scalar(f"{_TAG_PREFIX}str", data, style=None if is_plain else '"')

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        node.value = re.sub(r"^(-?\d+)e", r"\1.0e", node.value)  # YAML 1.1 reads 1e-05 as text
        return node


_RESOLVERS = (VersionedResolver(version=(1, 1)), VersionedResolver(version=(1, 2)))
_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads back as the same data; mappings keep their order."""
    yaml = _create_dumper()
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def quote_text(text: str) -> str:
    """Return a text as a double-quoted YAML scalar on one line."""
    yaml = _create_dumper()
    yaml.default_style = '"'
    yaml.width = 10 * len(text) + 100
    stream = StringIO()
    yaml.dump(text, stream)
    return stream.getvalue().rstrip("\n")


def _create_dumper() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.sort_base_mapping_type_on_output = False
    return yaml


def parse_yaml(text: str, source: str) -> ParsedYaml:
    """Parse one YAML document into plain data and the positions of its keys and values.

    Raises RecipeError beginning with source:line:column for invalid YAML, and for all duplicate keys, keys that are not
    text and unsupported tags together. No tag creates a Python object.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Resolver = _Composer, _Resolver
    yaml.max_depth = _MAX_DEPTH + 1
    try:
        node = yaml.compose(text)
    except (_AliasError, MaxDepthExceededError) as error:
        problem = (
            f"{error.problem} is not supported; write its value out"
            if isinstance(error, _AliasError)
            else f"nested more than {_MAX_DEPTH} levels deep; flatten it"
        )
        raise RecipeError(f"{source}:{_to_position(error.problem_mark)}: {problem}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{source}:{_to_position(mark)}" if mark else source
        raise RecipeError(
            f"{location}: is not valid YAML: {error.problem or error.context}; correct it there"
        ) from error
    except YAMLError as error:  # a character that YAML does not allow
        message = " ".join(str(error).split())
        raise RecipeError(f"{source}: is not valid YAML: {message}; save it as UTF-8 text") from error
    if node is None:
        raise RecipeError(f"{source}: is empty; see the recipes in configs/ for examples")
    reader = _NodeReader(yaml, source)
    data = reader.read(node, ())
    if reader.errors:
        raise RecipeError(*reader.errors)
    return ParsedYaml(data, reader.key_positions, reader.value_positions)


@dataclass
class _NodeReader:
    """Converts nodes to plain data and collects positions and errors."""

    yaml: YAML
    source: str
    key_positions: dict[KeyPath, Position] = field(default_factory=dict)
    value_positions: dict[KeyPath, Position] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def read(self, node: Node, key_path: KeyPath) -> Any:
        self.value_positions[key_path] = _to_position(node.start_mark)
        tag = str(node.tag).removeprefix(_TAG_PREFIX)
        if tag not in _TAGS[type(node)]:
            shown = tag if tag.startswith("!") else f"!!{tag}"
            self._add_error(node, key_path, f"tag {shown} is not supported here; remove it")
        match node:
            case MappingNode():
                return self._read_mapping(node, key_path)
            case SequenceNode():
                return [self._read_item(item, (*key_path, index)) for index, item in enumerate(node.value)]
            case ScalarNode():
                return self._read_scalar(node, tag, key_path)

    def _read_mapping(self, node: MappingNode, key_path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != f"{_TAG_PREFIX}str":
                self._add_error(key, key_path, "a key here is not a string; put it in quotes")
                continue
            child_path = (*key_path, key.value)
            first = self.key_positions.setdefault(child_path, _to_position(key.start_mark))
            if child_path[-1] in mapping:
                self._add_error(key, child_path, f"duplicate key, first on line {first.line}; remove one of them")
            mapping[key.value] = self.read(value, child_path)
        return mapping

    def _read_item(self, node: Node, key_path: KeyPath) -> Any:
        self.key_positions[key_path] = _to_position(node.start_mark)
        return self.read(node, key_path)

    def _read_scalar(self, node: ScalarNode, tag: str, key_path: KeyPath) -> Any:
        if tag not in _TAGS[ScalarNode]:
            return None
        try:
            if tag == "null" and node.value.lower() not in ("", "~", "null"):  # ruamel.yaml accepts any text here
                raise ValueError
            return self.yaml.constructor.construct_object(node)
        except (ValueError, LookupError):
            self._add_error(node, key_path, f"{node.value!r} is not a valid !!{tag}; correct it or remove the tag")

    def _add_error(self, node: Node, key_path: KeyPath, message: str) -> None:
        self.errors.append(f"{self.source}:{_to_position(node.start_mark)}: {format_key_path(key_path)}: {message}")


def format_key_path(key_path: KeyPath) -> str:
    """Return a key path in dotted form, such as stages.0.epochs."""
    return ".".join(str(part) for part in key_path) or "the recipe"


def _to_position(mark: StringMark) -> Position:
    return Position(mark.line + 1, mark.column + 1)
