"""Tests that cover the keys of a recipe."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class KeyTest:
    """A test, by its file in the repository and its name."""

    path: str
    test: str


def find_key_tests(root: Path) -> dict[str, list[KeyTest]]:
    """Return the tests in root/tests with a mark `@pytest.mark.covers(key, …)`, by key, without importing them."""
    key_tests: dict[str, list[KeyTest]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for key in _list_marked_keys(function):
                key_tests.setdefault(key, []).append(KeyTest(path.relative_to(root).as_posix(), function.name))
    return key_tests


def _list_marked_keys(function: ast.FunctionDef) -> Iterator[str]:
    calls = (node for decorator in function.decorator_list for node in ast.walk(decorator))
    for call in calls:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.covers":
            yield from (str(ast.literal_eval(argument)) for argument in call.args)
