"""Thresholds are the best there are, which is tried for every one, and their figures are those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from ftcli.inference.outputs import Outputs
from ftcli.inference.thresholds import find_thresholds, score_class


def draw(rng: np.random.Generator, images: int) -> Outputs:
    labels = np.append([0, 1], rng.integers(2, size=images - 2))
    logits = (rng.normal(size=(images, 2)) + np.eye(2)[labels]).round(int(rng.integers(3)))
    return Outputs(torch.tensor(logits).float(), torch.tensor(labels), tuple(map(str, range(images))), ())


def test_no_other_threshold_is_better() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        chosen, evaluated = draw(rng, int(rng.integers(2, 40))), draw(rng, 25)
        wanted = float(rng.choice([0.3, 0.5, 0.95, 1.0]))
        found = find_thresholds(chosen, evaluated, ("a", "b"), wanted, "val")
        assert [(one.positive, one.goal, one.wanted) for one in found] == [
            (name, goal, share) for name in "ab" for goal, share in (("f1", None), ("recall", wanted))
        ]
        for label in range(2):
            scores, members = score_class(chosen, label)
            tried = {
                threshold: precision_recall_fscore_support(
                    members, scores >= threshold, average="binary", zero_division=0.0
                )[:3]
                for threshold in sorted(set(scores.tolist()))
            }
            f1, recall = found[2 * label], found[2 * label + 1]
            assert f1.threshold == max(tried, key=lambda one: (tried[one][2], one))
            enough = [one for one in tried if tried[one][1] >= wanted]
            assert recall.threshold == max(enough, key=lambda one: (tried[one][0], tried[one][1]))
            own, truly = score_class(evaluated, label)
            for one in (f1, recall):
                told = precision_recall_fscore_support(
                    truly, own >= one.threshold, average="binary", zero_division=0.0
                )[:3]
                assert (one.precision, one.recall, one.f1) == pytest.approx(told, abs=1e-12)


def test_without_a_recall_there_is_the_best_f1_alone() -> None:
    outputs = draw(np.random.default_rng(1), 10)
    assert [one.goal for one in find_thresholds(outputs, outputs, ("a", "b"), None, "test")] == ["f1", "f1"]


def test_images_of_one_class_give_no_threshold() -> None:
    outputs = Outputs(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), ("",) * 4, ())
    assert find_thresholds(outputs, outputs, ("a", "b"), None, "all") == ()
