"""Figures of a classifier's outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ftcli.inference.outputs import Outputs
from ftcli.results import ReliabilityBin

_BINS = 15


def measure_loss(outputs: Outputs) -> float:
    """The mean cross-entropy in nats, without smoothing or weights, summed in float64."""
    return float(functional.cross_entropy(outputs.logits.double(), outputs.labels))


def measure_accuracy(outputs: Outputs) -> float:
    """The share of images whose largest logit is their label's."""
    return float((outputs.logits.argmax(1) == outputs.labels).double().mean())


def count_top(outputs: Outputs, top: int) -> int:
    """How many images have their label among their `top` largest logits; of equal ones the first class comes first."""
    order = outputs.logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return int((order == outputs.labels[:, None]).any(1).sum())


def count_confusion(outputs: Outputs) -> Tensor:
    """Counts (classes, classes): row the true class, column the one given."""
    classes = outputs.logits.shape[1]
    cells = outputs.labels * classes + outputs.logits.argmax(1)
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def measure_calibration(outputs: Outputs) -> float:
    """The expected calibration error over 15 equal bins of the top probability (Guo et al., arXiv 1706.04599)."""
    confidence, given = outputs.logits.double().softmax(1).max(1)
    right = (given == outputs.labels).double()
    places, bins = place_in_bins(confidence)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, places, right - confidence)
    return float(gaps.abs().sum() / len(right))


def list_reliability(outputs: Outputs) -> tuple[ReliabilityBin, ...]:
    """The bins of the expected calibration error, from the lowest probability to the highest."""
    confidence, given = outputs.logits.double().softmax(1).max(1)
    right = (given == outputs.labels).double()
    places, bins = place_in_bins(confidence)
    found = []
    for place in range(bins):
        inside = places == place
        images = int(inside.sum())
        sure, share = (float(values[inside].mean()) if images else None for values in (confidence, right))
        found.append(ReliabilityBin(place / bins, (place + 1) / bins, images, sure, share))
    return tuple(found)


def place_in_bins(confidence: Tensor) -> tuple[Tensor, int]:
    """The bin of each top probability, from 0, and how many bins there are. A bin holds what is above its lower bound
    and at most its upper one."""
    return (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1, _BINS
