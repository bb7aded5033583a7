"""YAML as a recipe needs it: every value's line and column, no key twice, numbers and switches without surprises."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from ftcli.errors import RecipeError

Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value, from the top."""


@dataclass(frozen=True)
class Mark:
    """A line and a column, both counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class Parsed:
    """Plain data and where its keys and values stand."""

    data: Any
    keys: dict[Place, Mark]
    values: dict[Place, Mark]


class _Refused(yaml.YAMLError):
    """YAML that is valid and that no recipe needs."""

    def __init__(self, problem: str, mark: Mark) -> None:
        super().__init__(problem)
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: only true and false are booleans, 1e-3 is a number, 010 and 1:30 are not read as others."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, which a small file can make endless, and depths that no recipe has."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        refusal = "an alias (*) stands where a value should" if isinstance(event, yaml.AliasEvent) else None
        if refusal or self.depth > 20:
            raise _Refused(f"{refusal or 'it is nested too deep'}", _mark(event.start_mark))
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", "~nN\0")
_Loader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile("^$"))]
_resolve("int", r"[-+]?(?:0|[1-9][0-9]{0,18})", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what any reader of YAML, ours or another, would take for something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [*theirs, *_Loader.yaml_implicit_resolvers.get(first, ())]
        for first, theirs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def write_yaml(plain: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back as the same; mappings keep their order."""
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def parse_yaml(text: str, name: str) -> Parsed:
    """Read one YAML document into plain data with the place of every key and value.

    Raises RecipeError that begins with name:line:column for what is no YAML, for a key that stands twice, and for a
    tag that would make a Python object; nothing of it is run.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise RecipeError(f"{name}: is not valid YAML: {_one_line(error)}; save it as UTF-8 text") from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{name}: is empty; see the recipes in configs/ for what it may say")
        keys: dict[Place, Mark] = {}
        values: dict[Place, Mark] = {}
        faults: list[str] = []
        _walk(node, (), keys, values, faults, name)
        if faults:
            raise RecipeError(*faults)
        return Parsed(loader.construct_document(node), keys, values)
    except _Refused as error:
        raise RecipeError(f"{name}:{error.mark}: is not valid YAML for a recipe: {error}; write it out") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{_mark(mark)}" if mark else name
        raise RecipeError(f"{place}: is not valid YAML: {error.problem or error.context}; correct it there") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: is not valid YAML: {_one_line(error)}; save it as UTF-8 text") from error
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, place: Place, keys: dict[Place, Mark], values: dict[Place, Mark], faults: list[str], name: str
) -> None:
    values[place] = _mark(node.start_mark)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        shown = node.tag.replace("tag:yaml.org,2002:", "!!")
        faults.append(
            f"{name}:{values[place]}: {join(place)}: {shown} asks for an object; a recipe holds only plain values, "
            "remove the tag"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                faults.append(f"{name}:{_mark(key.start_mark)}: {join(place)}: a key here is no text; put it in quotes")
                continue
            inner = (*place, key.value)
            if inner in keys:
                faults.append(
                    f"{name}:{_mark(key.start_mark)}: {join(inner)}: stands twice, first in line {keys[inner].line}; "
                    "keep one"
                )
            keys[inner] = _mark(key.start_mark)
            _walk(value, inner, keys, values, faults, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            keys[(*place, index)] = _mark(value.start_mark)
            _walk(value, (*place, index), keys, values, faults, name)


def join(place: Place) -> str:
    """A place as people write it: stages.0.epochs."""
    return ".".join(str(part) for part in place) or "the recipe"


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
