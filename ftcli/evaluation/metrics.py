"""Metrics of a classifier's outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import ReliabilityBin

_NUM_BINS = 15


def compute_loss(outputs: EvalOutputs) -> float:
    """Return the mean cross-entropy in nats, without label smoothing or class weights, summed in float64."""
    return float(functional.cross_entropy(outputs.logits.double(), outputs.labels))


def compute_accuracy(outputs: EvalOutputs) -> float:
    """Return the fraction of images whose predicted class is their true class."""
    return float(outputs.correct.double().mean())


def count_top_k_correct(outputs: EvalOutputs, k: int) -> int:
    """Count the images whose true class has one of the `k` largest logits; ties are broken by class order."""
    top_indices = outputs.logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return int((top_indices == outputs.labels[:, None]).any(1).sum())


def compute_confusion_matrix(outputs: EvalOutputs) -> Tensor:
    """Return image counts (classes, classes) with a row per true class and a column per predicted class."""
    num_classes = outputs.logits.shape[1]
    cell_indices = outputs.labels * num_classes + outputs.predicted
    return torch.bincount(cell_indices, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def compute_calibration_error(outputs: EvalOutputs) -> float:
    """Return the expected calibration error over 15 equal bins of the confidence (Guo et al., arXiv 1706.04599)."""
    bin_indices, num_bins = assign_bins(outputs.confidence)
    gaps = torch.zeros(num_bins, dtype=torch.float64)
    gaps.index_add_(0, bin_indices, outputs.correct.double() - outputs.confidence)
    return float(gaps.abs().sum() / len(outputs.labels))


def compute_reliability_bins(outputs: EvalOutputs) -> tuple[ReliabilityBin, ...]:
    """Return the bins of the expected calibration error in the order of their confidence."""
    bin_indices, num_bins = assign_bins(outputs.confidence)
    reliability_bins = []
    for index in range(num_bins):
        in_bin = bin_indices == index
        num_images = int(in_bin.sum())
        mean_confidence, bin_accuracy = (
            float(values[in_bin].mean()) if num_images else None
            for values in (outputs.confidence, outputs.correct.double())
        )
        reliability_bins.append(
            ReliabilityBin(index / num_bins, (index + 1) / num_bins, num_images, mean_confidence, bin_accuracy)
        )
    return tuple(reliability_bins)


def assign_bins(confidence: Tensor) -> tuple[Tensor, int]:
    """Return the bin index of each confidence and the number of bins; a bin includes its upper bound."""
    return (confidence * _NUM_BINS).ceil().long().clamp(1, _NUM_BINS) - 1, _NUM_BINS
