"""Metrics and thresholds equal those of scikit-learn or a direct computation."""

from __future__ import annotations

import numpy
import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import (
    compute_accuracy,
    compute_calibration_error,
    compute_confusion_matrix,
    compute_loss,
    compute_reliability_bins,
    count_top_k_correct,
    find_thresholds,
    get_class_scores,
)
from tests.evaluation.conftest import create_outputs


def create_random_outputs(seed: int, num_images: int, num_classes: int) -> EvalOutputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator) * 3
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    return create_outputs(logits, labels)


@pytest.mark.parametrize(("seed", "images", "classes"), [(0, 1, 2), (1, 50, 2), (2, 300, 7), (3, 5, 100)])
def test_metrics_match_sklearn(seed: int, images: int, classes: int) -> None:
    outputs = create_random_outputs(seed, images, classes)
    labels, predicted = outputs.labels.numpy(), outputs.predicted.numpy()
    probabilities = outputs.probabilities.numpy()
    assert compute_loss(outputs) == pytest.approx(log_loss(labels, probabilities, labels=range(classes)), rel=1e-12)
    assert compute_accuracy(outputs) == accuracy_score(labels, predicted)
    expected = confusion_matrix(labels, predicted, labels=range(classes))
    assert numpy.array_equal(compute_confusion_matrix(outputs).numpy(), expected)
    if classes > 5:
        top = top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes), normalize=False)
        assert count_top_k_correct(outputs, 5) == top


def test_outputs_derive_predictions_from_logits() -> None:
    outputs = create_outputs([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [0, 1, 1])
    assert outputs.predicted.tolist() == [0, 0, 1]
    assert outputs.correct.tolist() == [True, False, True]
    assert outputs.probabilities.dtype == outputs.confidence.dtype == torch.float64
    assert outputs.probabilities.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert outputs.confidence.tolist() == [
        float(outputs.probabilities[i, label]) for i, label in enumerate(outputs.predicted)
    ]


def test_count_top_k_correct_breaks_ties_by_class_order() -> None:
    outputs = create_outputs(torch.zeros(6, 6), torch.arange(6))
    assert [count_top_k_correct(outputs, k) for k in (1, 5, 6)] == [1, 5, 6]
    assert compute_accuracy(outputs) == 1 / 6


def test_compute_calibration_error_of_one_bin() -> None:
    # Ten images with predicted class 0 at confidence 0.8, six of them correct.
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(10, 1)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert compute_calibration_error(create_outputs(logits, labels)) == pytest.approx(0.2, abs=1e-6)


def test_compute_calibration_error_weights_bins_by_images() -> None:
    outputs = create_random_outputs(4, 2000, 3)
    confidence, correct = outputs.confidence, outputs.correct.double()
    gaps = 0.0
    for low in range(15):
        in_bin = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if in_bin.any():
            gaps += float(in_bin.sum()) / 2000 * abs(float(correct[in_bin].mean() - confidence[in_bin].mean()))
    assert compute_calibration_error(outputs) == pytest.approx(gaps, abs=1e-12)


def test_compute_reliability_bins_include_the_upper_bound() -> None:
    bins = compute_reliability_bins(create_outputs(torch.zeros(3, 3), torch.arange(3)))
    (filled,) = [reliability_bin for reliability_bin in bins if reliability_bin.images]
    assert (filled.low, filled.high, filled.images, filled.accuracy) == (4 / 15, 5 / 15, 3, 1 / 3)


def test_compute_reliability_bins_sum_to_the_calibration_error() -> None:
    outputs = create_random_outputs(5, 500, 4)
    bins = compute_reliability_bins(outputs)
    assert [(b.low, b.high) for b in bins] == [(index / 15, (index + 1) / 15) for index in range(15)]
    assert sum(b.images for b in bins) == 500
    gaps = 0.0
    for b in bins:
        if b.confidence is None or b.accuracy is None:
            assert b.images == 0
            continue
        assert b.low < b.confidence <= b.high
        gaps += b.images / 500 * abs(b.accuracy - b.confidence)
    assert gaps == pytest.approx(compute_calibration_error(outputs), abs=1e-12)
    assert bins[0].confidence is None  # with four classes, no confidence is below 1/4


def create_binary_outputs(rng: np.random.Generator, num_images: int) -> EvalOutputs:
    labels = np.append([0, 1], rng.integers(2, size=num_images - 2))
    logits = (rng.normal(size=(num_images, 2)) + np.eye(2)[labels]).round(int(rng.integers(3)))
    return create_outputs(logits, labels)


def test_find_thresholds_is_optimal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        selection, evaluated = create_binary_outputs(rng, int(rng.integers(2, 40))), create_binary_outputs(rng, 25)
        min_recall = float(rng.choice([0.3, 0.5, 0.95, 1.0]))
        thresholds = find_thresholds(selection, evaluated, ("a", "b"), min_recall, "val")
        assert [(threshold.positive, threshold.goal, threshold.wanted) for threshold in thresholds] == [
            (name, goal, recall_goal) for name in "ab" for goal, recall_goal in (("f1", None), ("recall", min_recall))
        ]
        for label in range(2):
            scores, is_positive = get_class_scores(selection, label)
            metrics_by_threshold = {
                threshold: precision_recall_fscore_support(
                    is_positive, scores >= threshold, average="binary", zero_division=0.0
                )[:3]
                for threshold in sorted(set(scores.tolist()))
            }
            f1, recall = thresholds[2 * label], thresholds[2 * label + 1]
            assert f1.threshold == max(
                metrics_by_threshold, key=lambda threshold: (metrics_by_threshold[threshold][2], threshold)
            )
            eligible = {
                threshold: metrics[:2]
                for threshold, metrics in metrics_by_threshold.items()
                if metrics[1] >= min_recall
            }
            assert recall.threshold == max(eligible, key=eligible.__getitem__)
            eval_scores, eval_is_positive = get_class_scores(evaluated, label)
            for threshold in (f1, recall):
                expected = precision_recall_fscore_support(
                    eval_is_positive, eval_scores >= threshold.threshold, average="binary", zero_division=0.0
                )[:3]
                assert (threshold.precision, threshold.recall, threshold.f1) == pytest.approx(expected, abs=1e-12)


def test_find_thresholds_without_recall_returns_f1_only() -> None:
    outputs = create_binary_outputs(np.random.default_rng(1), 10)
    assert [threshold.goal for threshold in find_thresholds(outputs, outputs, ("a", "b"), None, "test")] == ["f1", "f1"]


def test_find_thresholds_of_one_class_is_empty() -> None:
    outputs = create_outputs(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    assert find_thresholds(outputs, outputs, ("a", "b"), None, "all") == ()
