"""Which tests show that a key of a recipe does something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Proof:
    """A test, by its file in the project and its name."""

    path: str
    test: str


def find_proofs(root: Path) -> dict[str, list[Proof]]:
    """The tests below root/tests that carry `@pytest.mark.covers(key, …)`, by key, in order. Nothing is imported."""
    proofs: dict[str, list[Proof]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for key in _list_marks(function):
                proofs.setdefault(key, []).append(Proof(path.relative_to(root).as_posix(), function.name))
    return proofs


def _list_marks(function: ast.FunctionDef) -> Iterator[str]:
    calls = (node for decorator in function.decorator_list for node in ast.walk(decorator))
    for call in calls:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.covers":
            yield from (str(ast.literal_eval(argument)) for argument in call.args)
