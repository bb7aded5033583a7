"""Small copies of images that a page carries within itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ftcli.data.images import BrokenImage, read_rgb

SIDE = 160
"""The longer side in pixels, at most."""


@dataclass(frozen=True)
class Thumbnail:
    """A small copy as a data: address, with its size in pixels; or `fault`, what became of the image since."""

    address: str = ""
    width: int = 0
    height: int = 0
    fault: str = ""


def make_thumbnail(path: Path) -> Thumbnail:
    """The image as `read_rgb` sees it, reduced to at most 160 pixels, as a JPEG. The same file gives the same bytes.

    An image that cannot be read any more is no error: the thumbnail says why.
    """
    try:
        image = read_rgb(path)
    except BrokenImage as error:
        return Thumbnail(fault=error.why)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    address = "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
    return Thumbnail(address, image.width, image.height)
