"""Figures of a classifier's outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import ReliabilityBin

_NUM_BINS = 15


def compute_loss(outputs: EvalOutputs) -> float:
    """The mean cross-entropy in nats, without smoothing or weights, summed in float64."""
    return float(functional.cross_entropy(outputs.logits.double(), outputs.labels))


def compute_accuracy(outputs: EvalOutputs) -> float:
    """The share of images whose largest logit is their label's."""
    return float((outputs.logits.argmax(1) == outputs.labels).double().mean())


def count_top_k_correct(outputs: EvalOutputs, k: int) -> int:
    """How many images have their label among their `top` largest logits; of equal ones the first class comes first."""
    top_indices = outputs.logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return int((top_indices == outputs.labels[:, None]).any(1).sum())


def compute_confusion_matrix(outputs: EvalOutputs) -> Tensor:
    """Counts (classes, classes): row the true class, column the one given."""
    num_classes = outputs.logits.shape[1]
    cell_indices = outputs.labels * num_classes + outputs.logits.argmax(1)
    return torch.bincount(cell_indices, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def compute_calibration_error(outputs: EvalOutputs) -> float:
    """The expected calibration error over 15 equal bins of the top probability (Guo et al., arXiv 1706.04599)."""
    confidence, predicted = outputs.logits.double().softmax(1).max(1)
    correct = (predicted == outputs.labels).double()
    bin_indices, num_bins = assign_bins(confidence)
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bin_indices, correct - confidence)
    return float(gaps.abs().sum() / len(correct))


def compute_reliability_bins(outputs: EvalOutputs) -> tuple[ReliabilityBin, ...]:
    """The bins of the expected calibration error, from the lowest probability to the highest."""
    confidence, predicted = outputs.logits.double().softmax(1).max(1)
    correct = (predicted == outputs.labels).double()
    bin_indices, num_bins = assign_bins(confidence)
    reliability_bins = []
    for index in range(num_bins):
        in_bin = bin_indices == index
        num_images = int(in_bin.sum())
        mean_confidence, bin_accuracy = (
            float(values[in_bin].mean()) if num_images else None for values in (confidence, correct)
        )
        reliability_bins.append(
            ReliabilityBin(index / num_bins, (index + 1) / num_bins, num_images, mean_confidence, bin_accuracy)
        )
    return tuple(reliability_bins)


def assign_bins(confidence: Tensor) -> tuple[Tensor, int]:
    """The bin of each top probability, from 0, and how many bins there are. A bin holds what is above its lower bound
    and at most its upper one."""
    return (confidence * _NUM_BINS).ceil().long().clamp(1, _NUM_BINS) - 1, _NUM_BINS
