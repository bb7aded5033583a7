"""Tests of the plot of accuracies by depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftcli.errors import RunError
from ftcli.extraction.depth_plot import plot_depth
from ftcli.results import FeatureLayer, ProbeScore
from ftcli.statistics import wilson_interval
from tests.conftest import LibraryLog

BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def create_score(num_correct: int, has_test: bool = True) -> ProbeScore:
    """Return the score of a probe with `num_correct` of 100 images in cross-validation and on test."""
    low, high = wilson_interval(num_correct, 100)
    return ProbeScore(
        name="svm",
        layer="",
        parameters={"C": 0.1},
        folds=5,
        cv_accuracy=num_correct / 100,
        train_images=100,
        val_accuracy=None,
        test_accuracy=num_correct / 100 if has_test else None,
        test_low=low if has_test else None,
        test_high=high if has_test else None,
        test_images=100 if has_test else 0,
        seconds=1.0,
        test_majority=0.55 if has_test else None,
    )


def create_layers(count: int) -> list[FeatureLayer]:
    return [FeatureLayer(f"blocks.{n}", (3,), (3,), (n + 1) / count) for n in range(count)]


def find_colour(path: Path, colour: tuple[int, int, int]) -> tuple[float, float, int]:
    """Return the mean column and row of a color, as fractions of the plot without its legend, and its pixel count."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    pixels = pixels[: int(pixels.shape[0] * 0.66)]
    rows, columns = np.nonzero((abs(pixels - colour) < 6).all(axis=2))
    if not len(rows):
        return 0.0, 0.0, 0
    return float(columns.mean() / pixels.shape[1]), float(rows.mean() / pixels.shape[0]), len(rows)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_plot_depth_marks_best_in_cross_validation(tmp_path: Path, best: int) -> None:
    scores = [create_score(90 if index == best else 60) for index in range(3)]
    plot_depth(scores, create_layers(3), tmp_path / "d.png", "resnet18")
    column, row, count = find_colour(tmp_path / "d.png", GREEN)
    assert count > 50
    assert column == pytest.approx((0.12, 0.53, 0.95)[best], abs=0.04)
    assert row < 0.5


def test_plot_depth_without_test_shows_cross_validation_only(tmp_path: Path) -> None:
    plot_depth([create_score(60), create_score(70)], create_layers(2), tmp_path / "with.png", "resnet18")
    plot_depth(
        [create_score(60, False), create_score(70, False)], create_layers(2), tmp_path / "without.png", "resnet18"
    )
    assert find_colour(tmp_path / "with.png", BLUE)[2] > 500
    assert find_colour(tmp_path / "without.png", BLUE)[2] == 0
    assert find_colour(tmp_path / "without.png", ORANGE)[2] > 100


def test_plot_depth_error_bars_match_interval(tmp_path: Path) -> None:
    score = create_score(60)
    uncertain = ProbeScore(**{**vars(score), "test_low": 0.5, "test_high": 0.98})
    plot_depth([score, score], create_layers(2), tmp_path / "a.png", "x")
    plot_depth([uncertain, score], create_layers(2), tmp_path / "b.png", "x")
    assert find_colour(tmp_path / "b.png", BLUE)[1] != pytest.approx(find_colour(tmp_path / "a.png", BLUE)[1], abs=0.02)


def test_plot_depth_draws_sixty_layers_with_unicode_names(tmp_path: Path, log: LibraryLog) -> None:
    target = tmp_path / "d.png"
    named = [FeatureLayer(f"狗 $x_{n} {'long' * 30}", (3,), (3,), n / 60) for n in range(60)]
    plot_depth([create_score(50 + n % 40) for n in range(60)], named, target, "a title of many words " * 30)
    with Image.open(target) as image:
        assert image.size == (1800, 780)
    plot_depth([create_score(60)] * 2, create_layers(2), target, "\U000e1000")
    assert log.warnings[-1].startswith(f"{target}: no installed font has \U000e1000 (U+E1000)")


def test_plot_depth_reports_unwritable_path(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        plot_depth([create_score(60)] * 2, create_layers(2), tmp_path / "no/d.png", "x")
    assert str(error.value) == (
        f"{tmp_path}/no/d.png: cannot be written (No such file or directory); check the folder and its permissions"
    )
