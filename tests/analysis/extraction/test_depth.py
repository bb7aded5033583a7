"""The picture of accuracies by depth shows where a probe does best, and invents nothing where there is no test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftcli.analysis.extraction.depth import draw_depth
from ftcli.errors import RunError
from ftcli.results import FeatureLayer, ProbeScore, Silent
from ftcli.statistics import wilson

BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


class Listener(Silent):
    """A Reporter that remembers warnings."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def score(right: int, tested: bool = True) -> ProbeScore:
    """A probe that has `right` of 100 images right, in cross-validation and, where it is tested, on test."""
    low, high = wilson(right, 100)
    return ProbeScore(
        name="svm",
        layer="",
        parameters={"C": 0.1},
        folds=5,
        cv_accuracy=right / 100,
        train_images=100,
        val_accuracy=None,
        test_accuracy=right / 100 if tested else None,
        test_low=low if tested else None,
        test_high=high if tested else None,
        test_images=100 if tested else 0,
        seconds=1.0,
        test_majority=0.55 if tested else None,
    )


def layers(count: int) -> list[FeatureLayer]:
    return [FeatureLayer(f"blocks.{n}", (3,), (3,), (n + 1) / count) for n in range(count)]


def find(picture: Path, colour: tuple[int, int, int]) -> tuple[float, float, int]:
    """The mean column and row, as shares of the picture above its legend, and the number of pixels of a colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    pixels = pixels[: int(pixels.shape[0] * 0.66)]
    rows, columns = np.nonzero((abs(pixels - colour) < 6).all(axis=2))
    if not len(rows):
        return 0.0, 0.0, 0
    return float(columns.mean() / pixels.shape[1]), float(rows.mean() / pixels.shape[0]), len(rows)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_in_cross_validation_is_ringed(tmp_path: Path, best: int) -> None:
    scores = [score(90 if place == best else 60) for place in range(3)]
    draw_depth(scores, layers(3), tmp_path / "d.png", "resnet18", Silent())
    column, row, count = find(tmp_path / "d.png", GREEN)
    assert count > 50
    assert column == pytest.approx((0.12, 0.53, 0.95)[best], abs=0.04)
    assert row < 0.5


def test_without_test_images_cross_validation_stands_alone(tmp_path: Path) -> None:
    draw_depth([score(60), score(70)], layers(2), tmp_path / "with.png", "resnet18", Silent())
    draw_depth([score(60, False), score(70, False)], layers(2), tmp_path / "without.png", "resnet18", Silent())
    assert find(tmp_path / "with.png", BLUE)[2] > 500
    assert find(tmp_path / "without.png", BLUE)[2] == 0
    assert find(tmp_path / "without.png", ORANGE)[2] > 100


def test_bars_are_as_long_as_the_interval(tmp_path: Path) -> None:
    one, many = score(60), score(60)
    few = ProbeScore(**{**vars(one), "test_low": 0.5, "test_high": 0.98})
    draw_depth([one, many], layers(2), tmp_path / "a.png", "x", Silent())
    draw_depth([few, many], layers(2), tmp_path / "b.png", "x", Silent())
    assert find(tmp_path / "b.png", BLUE)[1] != pytest.approx(find(tmp_path / "a.png", BLUE)[1], abs=0.02)


def test_sixty_layers_with_long_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    listener, target = Listener(), tmp_path / "d.png"
    named = [FeatureLayer(f"狗 $x_{n} {'long' * 30}", (3,), (3,), n / 60) for n in range(60)]
    draw_depth([score(50 + n % 40) for n in range(60)], named, target, "a title of many words " * 30, listener)
    with Image.open(target) as image:
        assert image.size == (1800, 780)
    draw_depth([score(60)] * 2, layers(2), target, "\U000e1000", listener)
    assert listener.warned[-1].startswith(f"{target}: no installed font has \U000e1000 (U+E1000)")


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        draw_depth([score(60)] * 2, layers(2), tmp_path / "no/d.png", "x", Silent())
    assert str(error.value) == (
        f"{tmp_path}/no/d.png: cannot be written (No such file or directory); check the folder and its permissions"
    )
