"""Helpers of the tests of plots."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ftcli.inspection.canvas import Pixels


def read_png(png: Path | bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png).convert("RGB"))
