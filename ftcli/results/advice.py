"""What a recipe was drafted from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class InitResult(Result):
    """What `ftcli init` returns: the text of a recipe, and what it was drafted from. `splits` holds image counts by
    split and class as the recipe would draw them; width and height are medians, in pixels, of the `looked_at` images
    whose headers were read; `grey` is the share of grey files among them, and `broken` are those that are no images.
    `out` is where the recipe was written."""

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
