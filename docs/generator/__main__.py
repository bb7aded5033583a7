"""Write the generated documents: `python -m docs.generator [NAME]…`, all of them without a name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("models", "recipe")
"""Modules of this package; the `render_documents()` of each returns texts by their paths in the repository."""


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(NAMES):
        sys.exit(f"unknown document {sorted(unknown)[0]!r}; known: {', '.join(NAMES)}")
    for name in names or NAMES:
        documents: dict[str, str] = importlib.import_module(f"docs.generator.{name}").render_documents()
        for path, text in documents.items():
            (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
