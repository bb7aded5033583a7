"""Figures of a classifier's outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ftcli.inference.outputs import Outputs


def measure_loss(outputs: Outputs) -> float:
    """The mean cross-entropy in nats, without smoothing or weights, summed in float64."""
    return float(functional.cross_entropy(outputs.logits.double(), outputs.labels))


def measure_accuracy(outputs: Outputs) -> float:
    """The share of images whose largest logit is their label's."""
    return float((outputs.logits.argmax(1) == outputs.labels).double().mean())


def count_confusion(outputs: Outputs) -> Tensor:
    """Counts (classes, classes): row the true class, column the one given."""
    classes = outputs.logits.shape[1]
    cells = outputs.labels * classes + outputs.logits.argmax(1)
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def measure_calibration(outputs: Outputs, bins: int = 15) -> float:
    """The expected calibration error over equal bins of the top probability (Guo et al., arXiv 1706.04599)."""
    confidence, given = outputs.logits.double().softmax(1).max(1)
    right = (given == outputs.labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum() / len(right))
