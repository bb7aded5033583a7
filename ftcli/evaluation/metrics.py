"""Metrics of a classifier's outputs, and decision thresholds between two classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import ReliabilityBin, Threshold

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

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


def find_thresholds(
    selection_outputs: EvalOutputs,
    eval_outputs: EvalOutputs,
    classes: tuple[str, ...],
    min_recall: float | None,
    selection_split: str,
) -> tuple[Threshold, ...]:
    """Choose for each of two classes the threshold of the best F1 and, with `min_recall`, of the best precision at it.

    Thresholds are chosen on `selection_outputs` and measured on `eval_outputs`. A threshold is the probability of an
    image, and an image with this probability is positive. Ties go to the highest threshold for F1 and to the highest
    recall for precision. Empty if the selection has images of one class only.
    """
    if len(set(selection_outputs.labels.tolist())) < len(classes):
        return ()
    thresholds = []
    for label, name in enumerate(classes):
        selection_scores, eval_scores = class_scores(selection_outputs, label), class_scores(eval_outputs, label)
        for target_recall in (None,) if min_recall is None else (None, min_recall):
            threshold = choose_threshold(*selection_scores, target_recall)
            metrics = compute_threshold_metrics(*eval_scores, threshold)
            goal: Literal["f1", "recall"] = "f1" if target_recall is None else "recall"
            thresholds.append(Threshold(name, goal, target_recall, threshold, *metrics, selection_split))
    return tuple(thresholds)


def class_scores(outputs: EvalOutputs, label: int) -> tuple[FloatArray, BoolArray]:
    """Return the probability of a class for each image, and the images of this class."""
    scores: FloatArray = outputs.probabilities[:, label].numpy()
    return scores, (outputs.labels == label).numpy()


def choose_threshold(scores: FloatArray, is_positive: BoolArray, min_recall: float | None) -> float:
    """Return the score with the best F1, or with the best precision at a recall of at least `min_recall`.

    Needs positive and negative images.
    """
    order = np.argsort(-scores, kind="stable")
    is_last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(is_positive[order])[is_last_of_ties]
    num_predicted = np.arange(1, len(scores) + 1)[is_last_of_ties]
    if min_recall is None:
        best_index = int(np.argmax(2 * true_positives / (num_predicted + is_positive.sum())))
    else:
        eligible_precision = np.where(
            true_positives / is_positive.sum() >= min_recall, true_positives / num_predicted, -1.0
        )
        best_index = len(eligible_precision) - 1 - int(np.argmax(eligible_precision[::-1]))
    return float(scores[order][is_last_of_ties][best_index])


def compute_threshold_metrics(
    scores: FloatArray, is_positive: BoolArray, threshold: float
) -> tuple[float, float, float]:
    """Return precision, recall and F1 of predicting positive at scores of at least `threshold`; 0 for 0 / 0."""
    predicted_positive = scores >= threshold
    true_positives, num_predicted, num_positives = (
        int((predicted_positive & is_positive).sum()),
        int(predicted_positive.sum()),
        int(is_positive.sum()),
    )
    return (
        true_positives / max(1, num_predicted),
        true_positives / max(1, num_positives),
        2 * true_positives / max(1, num_predicted + num_positives),
    )
