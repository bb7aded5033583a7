"""Figures and their intervals equal those of scikit-learn on the images, and on the images drawn again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from ftcli.inference import intervals
from ftcli.inference.intervals import BOOTSTRAPPED, count_resamples, measure_figures, tally
from ftcli.inference.outputs import Outputs
from ftcli.results import Figure
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson


def draw(rng: np.random.Generator) -> Outputs:
    """Any number of classes and images; often with classes that are missing, equal scores and saturated ones."""
    classes, images = int(rng.integers(2, 13)), int(rng.choice([1, 2, 5, 40, 300]))
    present = rng.permutation(classes)[: rng.integers(1, classes + 1)]
    labels = rng.choice(present, images)
    logits = rng.normal(size=(images, classes)) * rng.choice([0.5, 3, 50])
    logits[np.arange(images), labels] += rng.choice([0, 2])
    match rng.integers(4):
        case 0:
            logits = logits.round()
        case 1:
            logits = np.zeros_like(logits)
    return Outputs(torch.tensor(logits).float(), torch.tensor(labels), tuple(map(str, range(images))), ())


def ask_sklearn(outputs: Outputs, chosen: Any) -> dict[str, float | None]:
    """The figures of images that are drawn again, by scikit-learn."""
    shares = outputs.logits.double().softmax(1).numpy()[chosen]
    labels, given = outputs.labels.numpy()[chosen], outputs.logits.argmax(1).numpy()[chosen]
    classes = range(shares.shape[1])
    told = [one for one in classes if 0 < (labels == one).sum() < len(labels)]
    areas = {one: roc_auc_score(labels == one, shares[:, one]) for one in told}
    averages = [average_precision_score(labels == one, shares[:, one]) for one in told]
    binary = len(classes) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UndefinedMetricWarning, UserWarning))  # a class that is answered, not there
        balanced = balanced_accuracy_score(labels, given)
    figures = {
        "balanced_accuracy": balanced,
        "macro_f1": f1_score(labels, given, average="macro"),
        "roc_auc": (areas[1] if binary else float(np.mean(list(areas.values())))) if areas else None,
        "average_precision": float(np.mean(averages)) if averages else None,
    }
    if shares[range(len(labels)), labels].min() > 1e-15:  # scikit-learn cuts off what is smaller
        figures["log_loss"] = log_loss(labels, shares, labels=classes)
    return figures


def by_name(figures: tuple[Figure, ...]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def same(value: float | None, expected: float | None) -> bool:
    if value is None or np.isnan(value):
        return expected is None
    return expected is not None and abs(value - expected) < 1e-9 * max(1.0, abs(expected))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 5)
    monkeypatch.setattr(intervals, "FEWEST", 5)


@pytest.mark.usefixtures("few_resamples")
def test_every_figure_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    undefined = 0
    for _ in range(200):
        outputs = draw(rng)
        figures = by_name(measure_figures(outputs, tally(outputs)))
        expected = ask_sklearn(outputs, np.arange(len(outputs.labels)))
        for name, value in expected.items():
            assert same(figures[name].value, value), (name, figures[name], value)
        assert ("top_5_accuracy" in figures) == (outputs.logits.shape[1] > 5)
        undefined += figures["roc_auc"].value is None
    assert undefined > 20  # the cases that scikit-learn has no answer for are among them


def test_resampled_figures_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        outputs = draw(rng)
        count = len(outputs.labels)
        chosen = rng.integers(count, size=(3, count))
        weights = np.stack([np.bincount(own, minlength=count) for own in chosen], 1).astype(float)
        values = tally(outputs).measure(weights)
        for column, own in enumerate(chosen):
            for name, value in ask_sklearn(outputs, own).items():
                assert same(values[BOOTSTRAPPED.index(name), column], value), name


def test_an_area_of_many_classes_is_that_of_one_against_the_rest() -> None:
    rng = np.random.default_rng(2)
    labels, logits = np.arange(60) % 4, rng.normal(size=(60, 4))
    outputs = Outputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * 60, ())
    shares = outputs.logits.double().softmax(1).numpy()
    figure = by_name(measure_figures(outputs, tally(outputs)))["roc_auc"]
    assert figure.value == pytest.approx(roc_auc_score(labels, shares, multi_class="ovr"), abs=1e-12)


def test_intervals_are_percentiles_of_images_drawn_again_and_their_mirror_images() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3
    logits = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[labels]
    outputs = Outputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * 90, ())
    figures = by_name(measure_figures(outputs, tally(outputs)))
    assert figures == by_name(measure_figures(outputs, tally(outputs)))
    drawn = np.random.default_rng(derive_seed("bootstrap", 90)).integers(90, size=(1000, 90))
    given = outputs.logits.argmax(1).numpy()

    def mirror(measure: Callable[[Any], float]) -> tuple[float, float]:
        low, high = map(float, np.quantile([measure(own) for own in drawn], (0.025, 0.975)))
        value = measure(np.arange(90))
        return max(0.0, min(low, 2 * value - high)), min(1.0, max(high, 2 * value - low))

    def recall(own: Any) -> float:
        return float(np.mean([(given[own] == one)[labels[own] == one].mean() for one in range(3)]))

    def error(own: Any) -> float:
        sure = outputs.logits.double().softmax(1).max(1)[0].numpy()[own]
        place = np.ceil(sure * 15)
        gaps = (given[own] == labels[own]) - sure
        return float(sum(abs(gaps[place == one].sum()) for one in np.unique(place)) / 90)

    balanced, calibration = figures["balanced_accuracy"], figures["expected_calibration_error"]
    assert (balanced.low, balanced.high) == pytest.approx(mirror(recall), abs=1e-12)
    assert (calibration.low, calibration.high) == pytest.approx((0.0, mirror(error)[1]))  # no more than chance
    sharp = Outputs(9 * outputs.logits, outputs.labels, outputs.paths, ())
    outputs, figures = sharp, by_name(measure_figures(sharp, tally(sharp)))
    calibration = figures["expected_calibration_error"]
    assert (calibration.low, calibration.high) == pytest.approx(mirror(error))
    assert calibration.low is not None
    assert calibration.low > 0.05
    right = int((given == labels).sum())
    assert (figures["accuracy"].low, figures["accuracy"].high) == wilson(right, 90)
    assert {name: figure.method for name, figure in figures.items()} == {
        "accuracy": "wilson",
        **dict.fromkeys(BOOTSTRAPPED, "bootstrap"),
    }


def imagine(rng: np.random.Generator, images: int, classes: int) -> Outputs:
    """A classifier that is fairly good, whose probabilities are nearly right."""
    labels, logits = rng.integers(classes, size=images), 1.5 * rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2.5
    return Outputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * images, ())


def test_intervals_hold_the_truth_where_classes_have_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    rng, tries = np.random.default_rng(5), 20
    for images, classes, names in (
        (1000, 50, ("macro_f1", "average_precision")),
        (60, 2, ("expected_calibration_error",)),
    ):
        whole = tally(imagine(rng, 30_000, classes)).measure(np.ones((30_000, 1)))[:, 0]
        truth = dict(zip(BOOTSTRAPPED, whole, strict=True))
        held = dict.fromkeys(names, 0)
        for _ in range(tries):
            outputs = imagine(rng, images, classes)
            figures = by_name(measure_figures(outputs, tally(outputs)))
            for figure in figures.values():
                assert figure.value is not None
                assert figure.low is not None
                assert figure.high is not None
                assert 0 <= figure.low <= figure.value <= figure.high, figure
                assert figure.name == "log_loss" or figure.high <= 1
            for name in names:
                low, high = figures[name].low, figures[name].high
                assert low is not None
                assert high is not None
                held[name] += low <= truth[name] <= high
        assert min(held.values()) >= 0.85 * tries, held


def test_draws_that_are_all_alike_tell_no_interval() -> None:
    labels = torch.arange(6) % 2
    perfect = Outputs(torch.eye(2)[labels] * 4, labels, ("",) * 6, ())
    for figure in measure_figures(perfect, tally(perfect)):
        if figure.name == "accuracy":
            assert (figure.value, figure.low, figure.high) == (1.0, *wilson(6, 6))
        else:
            assert figure.value is not None
            assert (figure.low, figure.high) == (None, None), figure


def test_images_of_one_class_define_no_curves() -> None:
    outputs = Outputs(torch.randn(5, 3), torch.ones(5, dtype=torch.int64), ("",) * 5, ())
    figures = by_name(measure_figures(outputs, tally(outputs)))
    for name in ("roc_auc", "average_precision"):
        assert figures[name] == Figure(name, None, None, None, "bootstrap")
    areas, averages = tally(outputs).rank_classes(np.ones((5, 1)))
    assert np.isnan(areas).all()
    assert np.isnan(averages).all()


def test_many_images_are_drawn_again_less_often() -> None:
    assert count_resamples(20_000, 10) == count_resamples(20_000, 100) == 1000
    assert count_resamples(50_000, 80) == 500
    assert count_resamples(50_000, 1000) == 200
