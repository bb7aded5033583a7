"""Tests of the canvas."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ftcli.inspection.canvas import Canvas, resize_to_fit
from tests.inspection.conftest import read_png


def test_canvas_pixels_are_exact(photographs: dict[str, Image.Image]) -> None:
    photo = np.asarray(photographs["china"].crop((0, 0, 211, 97)))
    canvas = Canvas(300, 151)
    canvas.paste(photo, 7, 31)
    canvas.write("狗 $x$ 🐶", 7, 5, 200)
    picture = read_png(canvas.render())
    assert picture.shape == (151, 300, 3)
    assert np.array_equal(picture[31:128, 7:218], photo)
    assert picture[5:20].min() < 128
    assert picture[130:].min() == 255
    assert canvas.render() == canvas.render()


def test_resize_to_fit_repeats_or_reduces() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(resize_to_fit(pixels, 5, 99)[::3, ::3], pixels)
    assert resize_to_fit(pixels, 5, 99).shape == (6, 6, 3)
    assert np.array_equal(resize_to_fit(pixels, 1, 2), pixels)
    assert resize_to_fit(np.zeros((500, 500, 3), np.uint8), 96, 256).shape == (256, 256, 3)
