"""YAML as a recipe needs it: every value's line and column, no key twice, numbers and switches without surprises."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from ftcli.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead to a value, from the top."""


@dataclass(frozen=True)
class Position:
    """A line and a column, both counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class ParsedYaml:
    """Plain data and where its keys and values stand."""

    data: Any
    key_positions: dict[KeyPath, Position]
    value_positions: dict[KeyPath, Position]


class _UnsupportedYamlError(yaml.YAMLError):
    """YAML that is valid and that no recipe needs."""

    def __init__(self, problem: str, position: Position) -> None:
        super().__init__(problem)
        self.position = position


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's scalars: only true and false are booleans, 1e-3 is a number, 010 and 1:30 are not read as others."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, which a small file can make endless, and depths that no recipe has."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = "an alias (*) stands where a value should" if isinstance(event, yaml.AliasEvent) else None
        if problem or self.depth > 20:
            raise _UnsupportedYamlError(f"{problem or 'it is nested too deep'}", _to_position(event.start_mark))
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _add_resolver(tag: str, pattern: str, first_characters: str) -> None:
    _YamlLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first_characters)
    )


_add_resolver("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_add_resolver("null", "~|null|Null|NULL|", "~nN\0")
_YamlLoader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile("^$"))]
_add_resolver("int", r"[-+]?(?:0|[1-9][0-9]{0,18})", "-+0123456789")
_add_resolver(
    "float",
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)


class _YamlDumper(yaml.SafeDumper):
    """Puts in quotes what any reader of YAML, ours or another, would take for something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [*resolvers, *_YamlLoader.yaml_implicit_resolvers.get(first, ())]
        for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back as the same; mappings keep their order."""
    text: str = yaml.dump(data, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def parse_yaml(text: str, source: str) -> ParsedYaml:
    """Read one YAML document into plain data with the place of every key and value.

    Raises RecipeError that begins with name:line:column for what is no YAML, for a key that stands twice, and for a
    tag that would make a Python object; nothing of it is run.
    """
    try:
        loader = _YamlLoader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise RecipeError(f"{source}: is not valid YAML: {_join_lines(error)}; save it as UTF-8 text") from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{source}: is empty; see the recipes in configs/ for what it may say")
        key_positions: dict[KeyPath, Position] = {}
        value_positions: dict[KeyPath, Position] = {}
        errors: list[str] = []
        _collect_positions(node, (), key_positions, value_positions, errors, source)
        if errors:
            raise RecipeError(*errors)
        return ParsedYaml(loader.construct_document(node), key_positions, value_positions)
    except _UnsupportedYamlError as error:
        raise RecipeError(
            f"{source}:{error.position}: is not valid YAML for a recipe: {error}; write it out"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{source}:{_to_position(mark)}" if mark else source
        raise RecipeError(
            f"{location}: is not valid YAML: {error.problem or error.context}; correct it there"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: is not valid YAML: {_join_lines(error)}; save it as UTF-8 text") from error
    finally:
        loader.dispose()


def _collect_positions(
    node: yaml.Node,
    key_path: KeyPath,
    key_positions: dict[KeyPath, Position],
    value_positions: dict[KeyPath, Position],
    errors: list[str],
    source: str,
) -> None:
    value_positions[key_path] = _to_position(node.start_mark)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        errors.append(
            f"{source}:{value_positions[key_path]}: {format_key_path(key_path)}: {tag} asks for an object; a recipe holds only plain values, "
            "remove the tag"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                errors.append(
                    f"{source}:{_to_position(key.start_mark)}: {format_key_path(key_path)}: a key here is no text; put it in quotes"
                )
                continue
            child_path = (*key_path, key.value)
            if child_path in key_positions:
                errors.append(
                    f"{source}:{_to_position(key.start_mark)}: {format_key_path(child_path)}: stands twice, first in line {key_positions[child_path].line}; "
                    "keep one"
                )
            key_positions[child_path] = _to_position(key.start_mark)
            _collect_positions(value, child_path, key_positions, value_positions, errors, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            key_positions[(*key_path, index)] = _to_position(value.start_mark)
            _collect_positions(value, (*key_path, index), key_positions, value_positions, errors, source)


def format_key_path(key_path: KeyPath) -> str:
    """A place as people write it: stages.0.epochs."""
    return ".".join(str(part) for part in key_path) or "the recipe"


def _to_position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _join_lines(error: Exception) -> str:
    return " ".join(str(error).split())
