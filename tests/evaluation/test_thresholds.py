"""Thresholds are the best of all candidates, and their metrics equal those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.thresholds import class_scores, find_thresholds
from tests.evaluation.conftest import create_outputs


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
            scores, is_positive = class_scores(selection, label)
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
            eval_scores, eval_is_positive = class_scores(evaluated, label)
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
