"""Results of `ftcli init` and `ftcli schema`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class InitResult(Result):
    """The result of `ftcli init`: the text of a recipe and the data set statistics behind it.

    `splits` holds image counts by split and class. `width` and `height` are medians in pixels over the `looked_at`
    images whose headers were read, `grey` is the fraction of greyscale files among them, and `broken` lists the corrupt
    ones. `out` is the recipe file, None if the recipe goes to standard output.
    """

    recipe: str
    images: int
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    looked_at: int
    width: int
    height: int
    grey: float
    broken: tuple[str, ...]
    backbone: str
    out: Path | None
    next_command: str


@dataclass(frozen=True)
class SchemaResult(Result):
    """The result of `ftcli schema`: the JSON Schema of a recipe."""

    document: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.document
