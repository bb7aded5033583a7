"""Small copies of images that a page carries within itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ftcli.data.images import CorruptImageError, read_rgb

MAX_SIDE = 160
"""The longer side in pixels, at most."""


@dataclass(frozen=True)
class Thumbnail:
    """A small copy as a data: address, with its size in pixels; or `fault`, what became of the image since."""

    data_url: str = ""
    width: int = 0
    height: int = 0
    error: str = ""


def make_thumbnail(path: Path) -> Thumbnail:
    """The image as `read_rgb` sees it, reduced to at most 160 pixels, as a JPEG. The same file gives the same bytes.

    An image that cannot be read any more is no error: the thumbnail says why.
    """
    try:
        image = read_rgb(path)
    except CorruptImageError as error:
        return Thumbnail(error=error.reason)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data_url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(data_url, image.width, image.height)
