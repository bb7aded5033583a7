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

from ftcli.evaluation import bootstrap
from ftcli.evaluation.bootstrap import BOOTSTRAP_METRICS, compute_bootstrap_stats, compute_metrics, count_resamples
from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import Metric
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson_interval


def create_random_outputs(rng: np.random.Generator) -> EvalOutputs:
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
    return EvalOutputs(torch.tensor(logits).float(), torch.tensor(labels), tuple(map(str, range(images))), ())


def compute_sklearn_metrics(outputs: EvalOutputs, indices: Any) -> dict[str, float | None]:
    """The figures of images that are drawn again, by scikit-learn."""
    probabilities = outputs.logits.double().softmax(1).numpy()[indices]
    labels, predicted = outputs.labels.numpy()[indices], outputs.logits.argmax(1).numpy()[indices]
    classes = range(probabilities.shape[1])
    defined_classes = [one for one in classes if 0 < (labels == one).sum() < len(labels)]
    aucs = {one: roc_auc_score(labels == one, probabilities[:, one]) for one in defined_classes}
    average_precisions = [average_precision_score(labels == one, probabilities[:, one]) for one in defined_classes]
    is_binary = len(classes) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UndefinedMetricWarning, UserWarning))  # a class that is answered, not there
        balanced_accuracy = balanced_accuracy_score(labels, predicted)
    metrics = {
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "roc_auc": (aucs[1] if is_binary else float(np.mean(list(aucs.values())))) if aucs else None,
        "average_precision": float(np.mean(average_precisions)) if average_precisions else None,
    }
    if probabilities[range(len(labels)), labels].min() > 1e-15:  # scikit-learn cuts off what is smaller
        metrics["log_loss"] = log_loss(labels, probabilities, labels=classes)
    return metrics


def by_name(metrics: tuple[Metric, ...]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def is_close(value: float | None, expected: float | None) -> bool:
    if value is None or np.isnan(value):
        return expected is None
    return expected is not None and abs(value - expected) < 1e-9 * max(1.0, abs(expected))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_RESAMPLES", 5)
    monkeypatch.setattr(bootstrap, "MIN_RESAMPLES", 5)


@pytest.mark.usefixtures("few_resamples")
def test_compute_metrics_matches_sklearn() -> None:
    rng = np.random.default_rng(0)
    num_undefined = 0
    for _ in range(200):
        outputs = create_random_outputs(rng)
        metrics = by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))
        expected = compute_sklearn_metrics(outputs, np.arange(len(outputs.labels)))
        for name, value in expected.items():
            assert is_close(metrics[name].value, value), (name, metrics[name], value)
        assert ("top_5_accuracy" in metrics) == (outputs.logits.shape[1] > 5)
        num_undefined += metrics["roc_auc"].value is None
    assert num_undefined > 20  # the cases that scikit-learn has no answer for are among them


def test_compute_weighted_metrics_matches_sklearn_on_resamples() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        outputs = create_random_outputs(rng)
        num_images = len(outputs.labels)
        resamples = rng.integers(num_images, size=(3, num_images))
        weights = np.stack([np.bincount(indices, minlength=num_images) for indices in resamples], 1).astype(float)
        values = compute_bootstrap_stats(outputs).compute_weighted_metrics(weights)
        for column, indices in enumerate(resamples):
            for name, value in compute_sklearn_metrics(outputs, indices).items():
                assert is_close(values[BOOTSTRAP_METRICS.index(name), column], value), name


def test_compute_metrics_roc_auc_is_one_vs_rest() -> None:
    rng = np.random.default_rng(2)
    labels, logits = np.arange(60) % 4, rng.normal(size=(60, 4))
    outputs = EvalOutputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * 60, ())
    probabilities = outputs.logits.double().softmax(1).numpy()
    metric = by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))["roc_auc"]
    assert metric.value == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-12)


def test_compute_metrics_intervals_are_mirrored_percentiles() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3
    logits = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[labels]
    outputs = EvalOutputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * 90, ())
    metrics = by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))
    assert metrics == by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))
    resamples = np.random.default_rng(derive_seed("bootstrap", 90)).integers(90, size=(1000, 90))
    predicted = outputs.logits.argmax(1).numpy()

    def mirror(measure: Callable[[Any], float]) -> tuple[float, float]:
        low, high = map(float, np.quantile([measure(indices) for indices in resamples], (0.025, 0.975)))
        value = measure(np.arange(90))
        return max(0.0, min(low, 2 * value - high)), min(1.0, max(high, 2 * value - low))

    def recall(indices: Any) -> float:
        return float(np.mean([(predicted[indices] == one)[labels[indices] == one].mean() for one in range(3)]))

    def error(indices: Any) -> float:
        confidence = outputs.logits.double().softmax(1).max(1)[0].numpy()[indices]
        bin_indices = np.ceil(confidence * 15)
        gaps = (predicted[indices] == labels[indices]) - confidence
        return float(sum(abs(gaps[bin_indices == one].sum()) for one in np.unique(bin_indices)) / 90)

    balanced, calibration = metrics["balanced_accuracy"], metrics["expected_calibration_error"]
    assert (balanced.low, balanced.high) == pytest.approx(mirror(recall), abs=1e-12)
    assert (calibration.low, calibration.high) == pytest.approx((0.0, mirror(error)[1]))  # no more than chance
    sharp = EvalOutputs(9 * outputs.logits, outputs.labels, outputs.paths, ())
    outputs, metrics = sharp, by_name(compute_metrics(sharp, compute_bootstrap_stats(sharp)))
    calibration = metrics["expected_calibration_error"]
    assert (calibration.low, calibration.high) == pytest.approx(mirror(error))
    assert calibration.low is not None
    assert calibration.low > 0.05
    num_correct = int((predicted == labels).sum())
    assert (metrics["accuracy"].low, metrics["accuracy"].high) == wilson_interval(num_correct, 90)
    assert {name: metric.method for name, metric in metrics.items()} == {
        "accuracy": "wilson",
        **dict.fromkeys(BOOTSTRAP_METRICS, "bootstrap"),
    }


def create_good_outputs(rng: np.random.Generator, num_images: int, num_classes: int) -> EvalOutputs:
    """A classifier that is fairly good, whose probabilities are nearly right."""
    labels, logits = rng.integers(num_classes, size=num_images), 1.5 * rng.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 2.5
    return EvalOutputs(torch.tensor(logits).float(), torch.tensor(labels), ("",) * num_images, ())


def test_compute_metrics_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_RESAMPLES", 200)
    rng, tries = np.random.default_rng(5), 20
    for images, classes, names in (
        (1000, 50, ("macro_f1", "average_precision")),
        (60, 2, ("expected_calibration_error",)),
    ):
        population_metrics = compute_bootstrap_stats(
            create_good_outputs(rng, 30_000, classes)
        ).compute_weighted_metrics(np.ones((30_000, 1)))[:, 0]
        truth = dict(zip(BOOTSTRAP_METRICS, population_metrics, strict=True))
        num_covered = dict.fromkeys(names, 0)
        for _ in range(tries):
            outputs = create_good_outputs(rng, images, classes)
            metrics = by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))
            for metric in metrics.values():
                assert metric.value is not None
                assert metric.low is not None
                assert metric.high is not None
                assert 0 <= metric.low <= metric.value <= metric.high, metric
                assert metric.name == "log_loss" or metric.high <= 1
            for name in names:
                low, high = metrics[name].low, metrics[name].high
                assert low is not None
                assert high is not None
                num_covered[name] += low <= truth[name] <= high
        assert min(num_covered.values()) >= 0.85 * tries, num_covered


def test_compute_metrics_without_variation_has_no_interval() -> None:
    labels = torch.arange(6) % 2
    perfect = EvalOutputs(torch.eye(2)[labels] * 4, labels, ("",) * 6, ())
    for metric in compute_metrics(perfect, compute_bootstrap_stats(perfect)):
        if metric.name == "accuracy":
            assert (metric.value, metric.low, metric.high) == (1.0, *wilson_interval(6, 6))
        else:
            assert metric.value is not None
            assert (metric.low, metric.high) == (None, None), metric


def test_compute_metrics_of_one_class_has_no_auc() -> None:
    outputs = EvalOutputs(torch.randn(5, 3), torch.ones(5, dtype=torch.int64), ("",) * 5, ())
    metrics = by_name(compute_metrics(outputs, compute_bootstrap_stats(outputs)))
    for name in ("roc_auc", "average_precision"):
        assert metrics[name] == Metric(name, None, None, None, "bootstrap")
    aucs, average_precisions = compute_bootstrap_stats(outputs).compute_class_auc_and_ap(np.ones((5, 1)))
    assert np.isnan(aucs).all()
    assert np.isnan(average_precisions).all()


def test_count_resamples_falls_with_size() -> None:
    assert count_resamples(20_000, 10) == count_resamples(20_000, 100) == 1000
    assert count_resamples(50_000, 80) == 500
    assert count_resamples(50_000, 1000) == 200
