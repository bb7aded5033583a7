"""Figures equal those of scikit-learn, or of a count by hand."""

from __future__ import annotations

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from ftcli.inference.metrics import (
    count_confusion,
    count_top,
    list_reliability,
    measure_accuracy,
    measure_calibration,
    measure_loss,
)
from ftcli.inference.outputs import Outputs


def draw(seed: int, images: int, classes: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator) * 3
    labels = torch.randint(classes, (images,), generator=generator)
    return Outputs(logits, labels, tuple(map(str, range(images))), ())


@pytest.mark.parametrize(("seed", "images", "classes"), [(0, 1, 2), (1, 50, 2), (2, 300, 7), (3, 5, 100)])
def test_figures_equal_those_of_scikit_learn(seed: int, images: int, classes: int) -> None:
    outputs = draw(seed, images, classes)
    labels, given = outputs.labels.numpy(), outputs.logits.argmax(1).numpy()
    probabilities = outputs.logits.double().softmax(1).numpy()
    assert measure_loss(outputs) == pytest.approx(log_loss(labels, probabilities, labels=range(classes)), rel=1e-12)
    assert measure_accuracy(outputs) == accuracy_score(labels, given)
    theirs = confusion_matrix(labels, given, labels=range(classes))
    assert numpy.array_equal(count_confusion(outputs).numpy(), theirs)
    if classes > 5:
        top = top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes), normalize=False)
        assert count_top(outputs, 5) == top


def test_of_equal_logits_the_first_classes_are_on_top() -> None:
    outputs = Outputs(torch.zeros(6, 6), torch.arange(6), ("",) * 6, ())
    assert [count_top(outputs, top) for top in (1, 5, 6)] == [1, 5, 6]
    assert measure_accuracy(outputs) == 1 / 6


def test_calibration_is_the_gap_between_sureness_and_accuracy() -> None:
    # Ten images, each given class 0 with probability 0.8; six of them rightly.
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(10, 1)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert measure_calibration(Outputs(logits, labels, ("",) * 10, ())) == pytest.approx(0.2, abs=1e-6)


def test_calibration_weighs_bins_by_their_images() -> None:
    outputs = draw(4, 2000, 3)
    sure, given = outputs.logits.double().softmax(1).max(1)
    right = (given == outputs.labels).double()
    gaps = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            gaps += float(inside.sum()) / 2000 * abs(float(right[inside].mean() - sure[inside].mean()))
    assert measure_calibration(outputs) == pytest.approx(gaps, abs=1e-12)


def test_a_bin_holds_its_upper_bound() -> None:
    bins = list_reliability(Outputs(torch.zeros(3, 3), torch.arange(3), ("",) * 3, ()))
    (filled,) = [one for one in bins if one.images]
    assert (filled.low, filled.high, filled.images, filled.accuracy) == (4 / 15, 5 / 15, 3, 1 / 3)


def test_the_bins_add_up_to_the_calibration_error() -> None:
    outputs = draw(5, 500, 4)
    bins = list_reliability(outputs)
    assert [(one.low, one.high) for one in bins] == [(place / 15, (place + 1) / 15) for place in range(15)]
    assert sum(one.images for one in bins) == 500
    gaps = 0.0
    for one in bins:
        if one.confidence is None or one.accuracy is None:
            assert one.images == 0
            continue
        assert one.low < one.confidence <= one.high
        gaps += one.images / 500 * abs(one.accuracy - one.confidence)
    assert gaps == pytest.approx(measure_calibration(outputs), abs=1e-12)
    assert bins[0].confidence is None  # four classes leave no top probability below a quarter
