"""Pictures of exact pixels with words in any script beside them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ftcli.drawing import FittedText, fit_text, tell_missing
from ftcli.errors import RecipeError
from ftcli.results import Reporter
from ftcli.storage import check_writable, replace_file

Pixels = NDArray[np.uint8]
"""Height, width, and red, green, blue from 0 to 255."""

MARGIN = 16
LINE = 18
"""Pixels from one line of words to the next."""
SIZE = 12.0
"""The height of letters in pixels."""


def check_target(target: Path, option: str) -> None:
    """Raise RecipeError that begins with `option` unless a PNG can be written there."""
    if target.suffix.lower() != ".png":
        raise RecipeError(f"{option}: {target} does not end in .png, the one format that is drawn; give such a name")
    if not target.parent.is_dir():
        raise RecipeError(f"{option}: the folder {target.parent} is not there; make it, or give another place")
    check_writable(target, option)


@dataclass(frozen=True)
class _Words:
    fitted: FittedText
    left: float
    line: float
    colour: str
    size: float


class Sheet:
    """A white picture on which pixels are put as they are, and words beside them. Places count pixels from the top
    left. The same sheet always gives the same bytes."""

    def __init__(self, width: int, height: int) -> None:
        self._canvas: Pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        self._words: list[_Words] = []

    def paste(self, pixels: Pixels, left: int, top: int) -> None:
        """Put an image there, which must lie within the sheet."""
        height, width = pixels.shape[:2]
        self._canvas[top : top + height, left : left + width] = pixels

    def write(
        self, text: str, left: int, top: int, width: int, *, colour: str = "black", size: float = SIZE
    ) -> FittedText:
        """Write one line of at most `width` pixels below `top`; what is longer loses its middle."""
        fitted = fit_text(text, size, width)
        self._words.append(_Words(fitted, left, top + size, colour, size))
        return fitted

    def publish(self, target: Path, reporter: Reporter) -> None:
        """Write the sheet as a PNG, whole or not at all, and warn of characters that no installed font has.

        Raises RunError where it cannot be written.
        """
        if missing := tell_missing(words.fitted for words in self._words):
            reporter.warn(f"{target}: {missing}")
        replace_file(target, self.render())

    def render(self) -> bytes:
        """The sheet as the bytes of a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
        from matplotlib.figure import Figure

        height, width = self._canvas.shape[:2]
        dpi = 72  # a point is then a pixel
        figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
        figure.figimage(self._canvas, 0, 0, origin="upper")
        for words in self._words:
            options: dict[str, Any] = words.fitted.options
            place = (words.left / width, 1 - words.line / height)
            figure.text(*place, words.fitted.text, color=words.colour, size=words.size, va="baseline", **options)
        target = io.BytesIO()
        FigureCanvasAgg(figure).print_png(target)  # type: ignore[no-untyped-call]
        return target.getvalue()


def fit_pixels(pixels: Pixels, low: int, high: int) -> Pixels:
    """A square image with a side of at least `low` pixels and at most `high`: as it is, every pixel as a block of
    equal ones where it is smaller, or reduced where it is larger."""
    side = pixels.shape[0]
    if side > high:
        return np.asarray(Image.fromarray(pixels).resize((high, high), Image.Resampling.BOX))
    block = max(1, -(-low // side))
    return pixels.repeat(block, axis=0).repeat(block, axis=1)
