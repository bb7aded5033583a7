"""Metrics of a classifier's outputs, and decision thresholds between two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import ReliabilityBin, Threshold

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_NUM_BINS = 15

BOOTSTRAP_METRICS = (
    "balanced_accuracy",
    "macro_f1",
    "roc_auc",
    "average_precision",
    "log_loss",
    "expected_calibration_error",
)


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
    """Return the expected calibration error over 15 confidence bins of equal width (Guo et al., arXiv 1706.04599)."""
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


@dataclass(frozen=True)
class RankCounts:
    """The images of one class against all others, sorted by score, for AUC and average precision under any weights.

    A threshold is a distinct score of a positive image. `counts` (3 x thresholds, images) has three rows for each, from
    the highest: the positives with this score, the negatives with this score, and the negatives between it and the next
    higher threshold.
    """

    counts: csr_matrix

    def compute_auc_and_ap(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the ROC AUC and the average precision, (b,) each, for weights (images, b).

        Weights count how often an image occurs. The values equal scikit-learn's roc_auc_score and
        average_precision_score for images repeated that often. Both are NaN without a positive or a negative image.
        """
        positives, tied, in_between = np.moveaxis((self.counts @ weights).reshape(-1, 3, weights.shape[1]), 1, 0)
        num_positives = positives.sum(0)
        num_negatives = weights.sum(0) - num_positives
        is_defined = (num_positives > 0) & (num_negatives > 0)
        true_positives = np.cumsum(positives, 0)
        false_positives = np.cumsum(tied + in_between, 0)
        negatives_below = num_negatives - false_positives + tied / 2
        precision = true_positives / np.maximum(true_positives + false_positives, 1)
        aucs = (positives * negatives_below).sum(0) / np.where(is_defined, num_positives * num_negatives, np.nan)
        return aucs, (positives * precision).sum(0) / np.where(is_defined, num_positives, np.nan)


def count_ranks(scores: FloatArray, is_positive: BoolArray) -> RankCounts:
    """Sort images by their scores (images,) and count positives and negatives per threshold."""
    order = np.argsort(-scores, kind="stable")
    tie_group = np.concatenate(([0], np.cumsum(np.diff(scores[order]) != 0)))
    positive_in_order = is_positive[order]
    positive_groups = np.unique(tie_group[positive_in_order])
    index = np.searchsorted(positive_groups, tie_group)  # of the highest threshold that is not above the score
    is_counted = index < len(positive_groups)  # negatives below the last positive change neither metric
    index, is_tied = index[is_counted], tie_group[is_counted] == positive_groups[index[is_counted]]
    rows = 3 * index + np.where(positive_in_order[is_counted], 0, np.where(is_tied, 1, 2))
    shape = (3 * len(positive_groups), len(scores))
    return RankCounts(csr_matrix((np.ones(len(rows)), (rows, order[is_counted])), shape=shape))


@dataclass(frozen=True)
class MetricTerms:
    """Per-image terms of all metrics, so that a resample is one vector of image weights.

    `support`, `predicted` and `true_positives` (classes, images) mark the images of each class, those predicted as the
    class, and those that are both. `calibration_gaps` (bins, images) holds correct minus confidence, `losses` (images,)
    the cross-entropy in nats, `class_rank_counts` the ranks of each class against all others.
    """

    support: csr_matrix
    predicted: csr_matrix
    true_positives: csr_matrix
    calibration_gaps: csr_matrix
    losses: FloatArray
    class_rank_counts: tuple[RankCounts, ...]

    def compute_class_auc_and_ap(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return one-vs-rest ROC AUC and average precision, (classes, b) each, for weights (images, b).

        NaN for a class that has no image or all images.
        """
        auc_and_ap = [counts.compute_auc_and_ap(weights) for counts in self.class_rank_counts]
        return np.stack([auc for auc, _ in auc_and_ap]), np.stack([ap for _, ap in auc_and_ap])

    def compute_for_weights(self, weights: FloatArray) -> FloatArray:
        """Return the metrics in the order of BOOTSTRAP_METRICS, (metrics, b), for weights (images, b).

        Weights count how often an image occurs. The values equal scikit-learn's for images repeated that often:
        balanced_accuracy_score; f1_score(average="macro") over the classes that occur as true or predicted class;
        roc_auc_score of the second of two classes, or its one-vs-rest mean over the classes that occur
        (multi_class="ovr" if all do); the mean of average_precision_score over the same classes (both of two);
        log_loss without clipping. The calibration error is compute_calibration_error. NaN where a metric is undefined.
        """
        support, predicted, true_positives = (
            self.support @ weights,
            self.predicted @ weights,
            self.true_positives @ weights,
        )
        num_images = weights.sum(0)
        aucs, average_precisions = self.compute_class_auc_and_ap(weights)
        return np.stack(
            [
                _masked_mean(true_positives / np.maximum(support, 1), support > 0),
                _masked_mean(2 * true_positives / np.maximum(support + predicted, 1), support + predicted > 0),
                aucs[1] if len(aucs) == 2 else _masked_mean(aucs, ~np.isnan(aucs)),
                _masked_mean(average_precisions, ~np.isnan(average_precisions)),
                self.losses @ weights / num_images,
                np.abs(self.calibration_gaps @ weights).sum(0) / num_images,
            ]
        )


def compute_metric_terms(outputs: EvalOutputs) -> MetricTerms:
    """Compute the per-image terms of all metrics."""
    num_images, num_classes = outputs.logits.shape
    labels, correct, confidence = outputs.labels.numpy(), outputs.correct.numpy(), outputs.confidence.numpy()
    bin_indices, num_bins = assign_bins(outputs.confidence)
    columns = np.arange(num_images)

    def build_matrix(values: FloatArray, rows: FloatArray, num_rows: int) -> csr_matrix:
        return csr_matrix((values, (rows, columns)), shape=(num_rows, num_images))

    return MetricTerms(
        support=build_matrix(np.ones(num_images), labels, num_classes),
        predicted=build_matrix(np.ones(num_images), outputs.predicted.numpy(), num_classes),
        true_positives=build_matrix(correct.astype(float), labels, num_classes),
        calibration_gaps=build_matrix(correct - confidence, bin_indices.numpy(), num_bins),
        losses=functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none").numpy(),
        class_rank_counts=tuple(
            count_ranks(outputs.probabilities[:, label].numpy(), labels == label) for label in range(num_classes)
        ),
    )


def find_thresholds(
    selection_outputs: EvalOutputs,
    eval_outputs: EvalOutputs,
    classes: tuple[str, ...],
    min_recall: float | None,
    selection_split: str,
) -> tuple[Threshold, ...]:
    """Choose for each of two classes the threshold of the best F1 and, with `min_recall`, of the best precision at it.

    Thresholds are chosen on `selection_outputs` and evaluated on `eval_outputs`. Images with a probability of at least
    the threshold are predicted positive. Of equal F1, the highest threshold is chosen; of equal precision, the highest
    recall. Return no thresholds if the selection has images of one class only.
    """
    if len(set(selection_outputs.labels.tolist())) < len(classes):
        return ()
    thresholds = []
    for label, name in enumerate(classes):
        selection_scores = get_class_scores(selection_outputs, label)
        eval_scores = get_class_scores(eval_outputs, label)
        for target_recall in (None,) if min_recall is None else (None, min_recall):
            threshold = choose_threshold(*selection_scores, target_recall)
            metrics = compute_threshold_metrics(*eval_scores, threshold)
            goal: Literal["f1", "recall"] = "f1" if target_recall is None else "recall"
            thresholds.append(Threshold(name, goal, target_recall, threshold, *metrics, selection_split))
    return tuple(thresholds)


def get_class_scores(outputs: EvalOutputs, label: int) -> tuple[FloatArray, BoolArray]:
    """Return the probability of a class for each image, and a mask of the images of this class."""
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
    """Return precision, recall and F1 at a threshold; 0 for 0 / 0.

    Images with a score of at least the threshold are predicted positive.
    """
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


def _masked_mean(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Return the mean of each column over the values in the mask; NaN for a column without any."""
    count = mask.sum(0)
    total: FloatArray = np.where(mask, values, 0.0).sum(0)
    return total / np.where(count > 0, count, np.nan)
