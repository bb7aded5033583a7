"""A canvas for images and text, saved as PNG with exact pixels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ftcli.files import atomic_write
from ftcli.plotting import FittedText, create_figure, describe_missing_characters, fit_text, render_png

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
"""RGB pixels (height, width, 3)."""

MARGIN = 16
LINE_HEIGHT = 18
"""Pixels per line of text."""
FONT_SIZE = 12.0
"""In pixels."""


@dataclass(frozen=True)
class _TextItem:
    fitted_text: FittedText
    left: float
    baseline: float
    colour: str
    size: float


class Canvas:
    """A white image to paste images on and write text on, at pixels from the top left. Equal content, equal bytes."""

    def __init__(self, width: int, height: int) -> None:
        self._pixels: Pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        self._texts: list[_TextItem] = []

    def paste(self, pixels: Pixels, left: int, top: int) -> None:
        """Paste an image, which must fit on the canvas."""
        height, width = pixels.shape[:2]
        self._pixels[top : top + height, left : left + width] = pixels

    def write(
        self, text: str, left: int, top: int, width: int, *, colour: str = "black", size: float = FONT_SIZE
    ) -> FittedText:
        """Write one line below `top`; a text wider than `width` pixels is shortened in the middle."""
        fitted_text = fit_text(text, size, width)
        self._texts.append(_TextItem(fitted_text, left, top + size, colour, size))
        return fitted_text

    def save(self, path: Path) -> None:
        """Write a PNG atomically, and warn of characters that no installed font has.

        Raises RunError if it cannot be written.
        """
        if missing := describe_missing_characters(item.fitted_text for item in self._texts):
            logger.warning(f"{path}: {missing}")
        atomic_write(path, self.render())

    def render(self) -> bytes:
        """The sheet as the bytes of a PNG."""
        height, width = self._pixels.shape[:2]
        dpi = 72  # a point is then a pixel
        figure = create_figure(width / dpi, height / dpi, dpi, facecolor="white")
        figure.figimage(self._pixels, 0, 0, origin="upper")
        for item in self._texts:
            options: dict[str, Any] = item.fitted_text.options
            position = (item.left / width, 1 - item.baseline / height)
            figure.text(*position, item.fitted_text.text, color=item.colour, size=item.size, va="baseline", **options)
        return render_png(figure)


def resize_to_fit(pixels: Pixels, min_side: int, max_side: int) -> Pixels:
    """Return a square image scaled to a side between `min_side` and `max_side`.

    A smaller image is enlarged by whole factors, so that every pixel is a block.
    """
    side = pixels.shape[0]
    if side > max_side:
        return np.asarray(Image.fromarray(pixels).resize((max_side, max_side), Image.Resampling.BOX))
    block = max(1, -(-min_side // side))
    return pixels.repeat(block, axis=0).repeat(block, axis=1)
