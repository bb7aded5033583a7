"""Metrics equal those of scikit-learn, also on resamples; intervals equal those of scipy and cover the truth."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from ftcli.evaluation import bootstrap
from ftcli.evaluation.bootstrap import compute_bca_interval, compute_metrics_with_intervals, count_resamples
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import BOOTSTRAP_METRICS, compute_metric_terms
from ftcli.results import Metric
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson_interval
from tests.evaluation.conftest import create_good_outputs, create_outputs


def create_random_outputs(rng: np.random.Generator) -> EvalOutputs:
    """Create outputs of random size, often with missing classes, tied scores and saturated probabilities."""
    num_classes, num_images = int(rng.integers(2, 13)), int(rng.choice([1, 2, 5, 40, 300]))
    present = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)]
    labels = rng.choice(present, num_images)
    logits = rng.normal(size=(num_images, num_classes)) * rng.choice([0.5, 3, 50])
    logits[np.arange(num_images), labels] += rng.choice([0, 2])
    match rng.integers(4):
        case 0:
            logits = logits.round()
        case 1:
            logits = np.zeros_like(logits)
    return create_outputs(logits, labels)


def compute_sklearn_metrics(outputs: EvalOutputs, indices: Any) -> dict[str, float | None]:
    """Compute the metrics of the indexed images with scikit-learn."""
    probabilities = outputs.probabilities.numpy()[indices]
    labels, predicted = outputs.labels.numpy()[indices], outputs.predicted.numpy()[indices]
    classes = range(probabilities.shape[1])
    defined_classes = [label for label in classes if 0 < (labels == label).sum() < len(labels)]
    aucs = {label: roc_auc_score(labels == label, probabilities[:, label]) for label in defined_classes}
    average_precisions = [
        average_precision_score(labels == label, probabilities[:, label]) for label in defined_classes
    ]
    is_binary = len(classes) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UndefinedMetricWarning, UserWarning))  # a predicted class without images
        balanced_accuracy = balanced_accuracy_score(labels, predicted)
    metrics = {
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "roc_auc": (aucs[1] if is_binary else float(np.mean(list(aucs.values())))) if aucs else None,
        "average_precision": float(np.mean(average_precisions)) if average_precisions else None,
    }
    if probabilities[range(len(labels)), labels].min() > 1e-15:  # scikit-learn clips smaller ones
        metrics["log_loss"] = log_loss(labels, probabilities, labels=classes)
    return metrics


def metrics_by_name(outputs: EvalOutputs) -> dict[str, Metric]:
    return {metric.name: metric for metric in compute_metrics_with_intervals(outputs, compute_metric_terms(outputs))}


def get_interval(metric: Metric) -> tuple[float, float]:
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.high


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
        metrics = metrics_by_name(outputs)
        expected = compute_sklearn_metrics(outputs, np.arange(len(outputs.labels)))
        for name, value in expected.items():
            assert is_close(metrics[name].value, value), (name, metrics[name], value)
        assert ("top_5_accuracy" in metrics) == (outputs.logits.shape[1] > 5)
        num_undefined += metrics["roc_auc"].value is None
    assert num_undefined > 20  # cases that scikit-learn leaves undefined are covered too


def test_compute_for_weights_matches_sklearn_on_resamples() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        outputs = create_random_outputs(rng)
        num_images = len(outputs.labels)
        resamples = rng.integers(num_images, size=(3, num_images))
        weights = np.stack([np.bincount(indices, minlength=num_images) for indices in resamples], 1).astype(float)
        values = compute_metric_terms(outputs).compute_for_weights(weights)
        for column, indices in enumerate(resamples):
            for name, value in compute_sklearn_metrics(outputs, indices).items():
                assert is_close(values[BOOTSTRAP_METRICS.index(name), column], value), name


def test_compute_metrics_roc_auc_is_one_vs_rest() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 4
    outputs = create_outputs(rng.normal(size=(60, 4)), labels)
    expected = roc_auc_score(labels, outputs.probabilities.numpy(), multi_class="ovr")
    assert metrics_by_name(outputs)["roc_auc"].value == pytest.approx(expected, abs=1e-12)


def test_compute_metrics_intervals_are_bca_and_wilson() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3
    outputs = create_outputs(rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[labels], labels)
    metrics = metrics_by_name(outputs)
    assert metrics == metrics_by_name(outputs)
    predicted = outputs.predicted.numpy()
    resamples = np.random.default_rng(derive_seed("bootstrap", 90)).integers(90, size=(1000, 90))

    def balanced_accuracy(indices: Any) -> float:
        return float(np.mean([(predicted[indices] == label)[labels[indices] == label].mean() for label in range(3)]))

    expected = compute_bca_interval(
        balanced_accuracy(np.arange(90)),
        np.array([balanced_accuracy(indices) for indices in resamples]),
        np.array([balanced_accuracy(np.delete(np.arange(90), index)) for index in range(90)]),
    )
    assert get_interval(metrics["balanced_accuracy"]) == pytest.approx(expected, abs=1e-12)
    num_correct = int((predicted == labels).sum())
    assert get_interval(metrics["accuracy"]) == wilson_interval(num_correct, 90)
    assert {name: metric.method for name, metric in metrics.items()} == {
        "accuracy": "wilson",
        **dict.fromkeys(BOOTSTRAP_METRICS, "bca"),
    }


def test_compute_bca_interval_matches_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        data = rng.exponential(size=50)

        def variance(values: Any, axis: int = -1) -> Any:
            return np.var(values, axis=axis)

        result = scipy.stats.bootstrap((data,), variance, n_resamples=500, method="BCa", rng=rng)
        jackknife = np.array([np.var(np.delete(data, index)) for index in range(50)])
        interval = compute_bca_interval(float(np.var(data)), result.bootstrap_distribution, jackknife)
        assert interval == pytest.approx(tuple(result.confidence_interval), rel=0.01)


def test_compute_bca_interval_is_none_if_biased_or_constant() -> None:
    samples, jackknife = np.linspace(0, 1, 1001), np.linspace(0.4, 0.6, 50)
    assert compute_bca_interval(0.5, samples, jackknife) == pytest.approx((0.025, 0.975), abs=1e-9)
    assert compute_bca_interval(0.5, np.append(samples, np.nan), jackknife) is not None
    for value in (0.25, 0.75):  # a bias of 0.7 standard errors is at 0.242 and 0.758
        interval = compute_bca_interval(value, samples, jackknife)
        assert interval is not None
        assert interval[0] < value < interval[1]
    for value in (-0.1, 0.24, 0.76, 1.1):
        assert compute_bca_interval(value, samples, jackknife) is None
    assert compute_bca_interval(0.5, np.full(10, 0.5), jackknife) is None
    assert compute_bca_interval(0.5, np.full(10, np.nan), jackknife) is None


def test_compute_metrics_calibration_error_interval_starts_at_zero_if_consistent() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3
    outputs = create_outputs(rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[labels], labels)
    resamples = np.random.default_rng(derive_seed("bootstrap", 90)).integers(90, size=(1000, 90))

    def calibration_error(outputs: EvalOutputs, indices: Any) -> float:
        bin_indices = np.ceil(outputs.confidence.numpy()[indices] * 15)
        gaps = (outputs.correct.double() - outputs.confidence).numpy()[indices]
        return float(sum(abs(gaps[bin_indices == index].sum()) for index in np.unique(bin_indices)) / len(indices))

    samples = [calibration_error(outputs, indices) for indices in resamples]
    metric = metrics_by_name(outputs)["expected_calibration_error"]
    assert get_interval(metric) == pytest.approx((0.0, np.quantile(samples, 0.975)))
    overconfident = replace(outputs, logits=9 * outputs.logits)
    expected = compute_bca_interval(
        calibration_error(overconfident, np.arange(90)),
        np.array([calibration_error(overconfident, indices) for indices in resamples]),
        np.array([calibration_error(overconfident, np.delete(np.arange(90), index)) for index in range(90)]),
    )
    low, high = get_interval(metrics_by_name(overconfident)["expected_calibration_error"])
    assert (low, high) == pytest.approx(expected)
    assert low > 0.05


def test_compute_metrics_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_RESAMPLES", 200)
    rng, num_trials = np.random.default_rng(5), 40
    for num_images, num_classes in ((1000, 50), (200, 5), (60, 2)):
        population = compute_metric_terms(create_good_outputs(rng, 30_000, num_classes))
        truth = dict(zip(BOOTSTRAP_METRICS, population.compute_for_weights(np.ones((30_000, 1)))[:, 0], strict=True))
        num_intervals, num_covered = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
        for _ in range(num_trials):
            metrics = metrics_by_name(create_good_outputs(rng, num_images, num_classes))
            for name, true_value in truth.items():
                if metrics[name].low is None:
                    continue
                low, high = get_interval(metrics[name])
                assert 0 <= low <= (metrics[name].value or 0.0) <= high, metrics[name]
                assert name == "log_loss" or high <= 1
                num_intervals[name] += 1
                num_covered[name] += low <= true_value <= high
        for name, count in num_intervals.items():
            assert count < 5 or num_covered[name] >= 0.85 * count, (name, num_covered, num_intervals)
        many_classes = num_classes == 50
        assert {name for name, count in num_intervals.items() if count < 0.9 * num_trials} == (
            {"average_precision"} if many_classes else set()
        )


def test_compute_metrics_without_variation_has_no_interval() -> None:
    labels = torch.arange(6) % 2
    perfect = create_outputs(torch.eye(2)[labels] * 4, labels)
    for metric in compute_metrics_with_intervals(perfect, compute_metric_terms(perfect)):
        if metric.name == "accuracy":
            assert (metric.value, metric.low, metric.high) == (1.0, *wilson_interval(6, 6))
        else:
            assert metric.value is not None
            assert (metric.low, metric.high) == (None, None), metric


def test_compute_metrics_of_one_class_has_no_auc() -> None:
    outputs = create_outputs(torch.randn(5, 3), torch.ones(5, dtype=torch.int64))
    metrics = metrics_by_name(outputs)
    for name in ("roc_auc", "average_precision"):
        assert metrics[name] == Metric(name, None, None, None, "bca")
    aucs, average_precisions = compute_metric_terms(outputs).compute_class_auc_and_ap(np.ones((5, 1)))
    assert np.isnan(aucs).all()
    assert np.isnan(average_precisions).all()


def test_count_resamples_decreases_with_size() -> None:
    assert count_resamples(20_000, 10) == count_resamples(20_000, 100) == 1000
    assert count_resamples(50_000, 80) == 500
    assert count_resamples(50_000, 1000) == 200
