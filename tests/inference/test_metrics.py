"""Figures equal those of scikit-learn, or of a count by hand."""

from __future__ import annotations

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from ftcli.inference.metrics import count_confusion, measure_accuracy, measure_calibration, measure_loss
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
