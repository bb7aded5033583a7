"""`python -m docs.generator [NAME]…` writes the documents of that name anew, or all."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("models", "recipe")
"""The modules beside this one; each has `render_documents() -> dict[str, str]`, texts by their path in the project."""


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(NAMES):
        sys.exit(f"no document is called {sorted(unknown)[0]!r}; known: {', '.join(NAMES)}")
    for name in names or NAMES:
        documents: dict[str, str] = importlib.import_module(f"docs.generator.{name}").render_documents()
        for path, text in documents.items():
            (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
