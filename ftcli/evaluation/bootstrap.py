"""Metrics with 95% intervals: Wilson for fractions of images, BCa bootstrap for all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import ndtr, ndtri
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import (
    BoolArray,
    FloatArray,
    assign_bins,
    compute_accuracy,
    compute_calibration_error,
    compute_loss,
    count_top_k_correct,
)
from ftcli.results import Metric
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson_interval

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200
_MAX_WORK = 2e9  # resamples x images x classes
_MAX_WEIGHTS_PER_CHUNK = 2e6
_NUM_JACKKNIFE_GROUPS = 100
_MAX_BIAS = 0.7
"""The limit of the bootstrap's median bias in standard errors. In simulations BCa intervals cover the truth in about
90% of cases below it and in none at 1.2, the bias of average precision with 50 classes of 20 images."""
_TOP_K = 5

BOOTSTRAP_METRICS = (
    "balanced_accuracy",
    "macro_f1",
    "roc_auc",
    "average_precision",
    "log_loss",
    "expected_calibration_error",
)


@dataclass(frozen=True)
class RankCounts:
    """The images of one class against all others, sorted by score, for AUC and average precision under any weights.

    A step is a score that positive images have. For each step, `counts` (3 steps, images) sums the positives with its
    score, the negatives with its score, and the negatives between it and the step before.
    """

    counts: csr_matrix

    def compute_auc_and_ap(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the ROC AUC and the average precision, (b,) each, for weights (images, b).

        Weights count how often an image occurs. The values equal scikit-learn's roc_auc_score and
        average_precision_score for images repeated that often. Both are NaN without a positive or a negative image.
        """
        step_positives, tied, in_between = np.moveaxis((self.counts @ weights).reshape(-1, 3, weights.shape[1]), 1, 0)
        num_positives = step_positives.sum(0)
        num_negatives = weights.sum(0) - num_positives
        is_defined = (num_positives > 0) & (num_negatives > 0)
        true_positives = np.cumsum(step_positives, 0)
        false_positives = np.cumsum(tied + in_between, 0)
        negatives_below = num_negatives - false_positives + tied / 2
        precision = true_positives / np.maximum(true_positives + false_positives, 1)
        aucs = (step_positives * negatives_below).sum(0) / np.where(is_defined, num_positives * num_negatives, np.nan)
        return aucs, (step_positives * precision).sum(0) / np.where(is_defined, num_positives, np.nan)


def count_ranks(scores: FloatArray, is_positive: BoolArray) -> RankCounts:
    """Sort images by their scores (images,) and count positives and negatives per step."""
    order = np.argsort(-scores, kind="stable")
    tie_group = np.concatenate(([0], np.cumsum(np.diff(scores[order]) != 0)))
    positive_in_order = is_positive[order]
    positive_groups = np.unique(tie_group[positive_in_order])
    step = np.searchsorted(positive_groups, tie_group)  # the first step whose score is not above the image's
    is_counted = step < len(positive_groups)  # negatives below the last positive change neither metric
    step, is_tied = step[is_counted], tie_group[is_counted] == positive_groups[step[is_counted]]
    rows = 3 * step + np.where(positive_in_order[is_counted], 0, np.where(is_tied, 1, 2))
    shape = (3 * len(positive_groups), len(scores))
    return RankCounts(csr_matrix((np.ones(len(rows)), (rows, order[is_counted])), shape=shape))


@dataclass(frozen=True)
class BootstrapStats:
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

    def compute_weighted_metrics(self, weights: FloatArray) -> FloatArray:
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


def compute_bootstrap_stats(outputs: EvalOutputs) -> BootstrapStats:
    """Compute the per-image terms of all metrics."""
    num_images, num_classes = outputs.logits.shape
    labels, correct, confidence = outputs.labels.numpy(), outputs.correct.numpy(), outputs.confidence.numpy()
    bin_indices, num_bins = assign_bins(outputs.confidence)
    columns = np.arange(num_images)

    def build_matrix(values: FloatArray, rows: FloatArray, num_rows: int) -> csr_matrix:
        return csr_matrix((values, (rows, columns)), shape=(num_rows, num_images))

    return BootstrapStats(
        support=build_matrix(np.ones(num_images), labels, num_classes),
        predicted=build_matrix(np.ones(num_images), outputs.predicted.numpy(), num_classes),
        true_positives=build_matrix(correct.astype(float), labels, num_classes),
        calibration_gaps=build_matrix(correct - confidence, bin_indices.numpy(), num_bins),
        losses=functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none").numpy(),
        class_rank_counts=tuple(
            count_ranks(outputs.probabilities[:, label].numpy(), labels == label) for label in range(num_classes)
        ),
    )


def compute_metrics(outputs: EvalOutputs, stats: BootstrapStats) -> tuple[Metric, ...]:
    """Compute all metrics with their 95% intervals; top_5_accuracy only for more than five classes.

    Accuracies have Wilson intervals. The others have BCa bootstrap intervals from 1,000 resamples of the images, fewer
    (at least 200) above 2 million images x classes, with a seed that depends on the number of images alone. A metric
    has no interval if all resamples give the same value, or if the bootstrap is too biased for BCa (_MAX_BIAS).

    The calibration error of a perfectly calibrated classifier is above 0 on any finite set of images, so resamples
    never reach 0. If such a classifier would exceed the measured error in more than 1 of 40 cases, the interval is from
    0 to the 97.5th percentile of the resamples.
    """
    num_images, num_classes = outputs.logits.shape
    metrics = [_make_wilson_metric("accuracy", compute_accuracy(outputs), num_images)]
    if num_classes > _TOP_K:
        metrics.append(
            _make_wilson_metric("top_5_accuracy", count_top_k_correct(outputs, _TOP_K) / num_images, num_images)
        )
    exact = {"log_loss": compute_loss(outputs), "expected_calibration_error": compute_calibration_error(outputs)}
    values = stats.compute_weighted_metrics(np.ones((num_images, 1)))[:, 0].tolist()
    resampled, jackknifed = _resample(stats, num_images, num_classes), _jackknife(stats, num_images)
    for name, value, samples, jackknife in zip(BOOTSTRAP_METRICS, values, resampled, jackknifed, strict=True):
        if np.isnan(value):
            metrics.append(Metric(name, None, None, None, "bca"))
            continue
        estimate = exact.get(name, value)
        low, high = compute_bca_interval(value, samples, jackknife) or (None, None)
        if (
            name == "expected_calibration_error"
            and _varies(samples, value)
            and estimate <= _compute_chance_calibration_error(outputs, len(samples))
        ):
            low, high = 0.0, float(np.quantile(samples, 0.975))
        metrics.append(Metric(name, estimate, low, high, "bca"))
    return tuple(metrics)


def compute_bca_interval(value: float, samples: FloatArray, jackknife: FloatArray) -> tuple[float, float] | None:
    """Return the 95% BCa interval of a metric (Efron, JASA 82, 1987) from its resamples and its jackknife values.

    NaN samples are ignored. None if the samples do not vary or their median bias is above _MAX_BIAS standard errors.
    """
    samples, jackknife = samples[~np.isnan(samples)], jackknife[~np.isnan(jackknife)]
    if not _varies(samples, value):
        return None
    rounding = 1e-12 * abs(value)
    z0 = float(ndtri(((samples < value - rounding).mean() + (samples <= value + rounding).mean()) / 2))
    if not abs(z0) <= _MAX_BIAS:
        return None
    acceleration = _compute_acceleration(jackknife)
    z = z0 + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(samples, ndtr(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


def _compute_acceleration(jackknife: FloatArray) -> float:
    """Return a sixth of the skewness of the jackknife values; 0 if they do not vary."""
    deviations = jackknife.mean() - jackknife if len(jackknife) else jackknife
    sum_of_squares = float((deviations**2).sum())
    return float((deviations**3).sum()) / (6 * sum_of_squares**1.5) if sum_of_squares > 0 else 0.0


def count_resamples(num_images: int, num_classes: int) -> int:
    """Return the number of bootstrap resamples: MAX_RESAMPLES, or fewer to limit the work."""
    return int(min(MAX_RESAMPLES, max(MIN_RESAMPLES, _MAX_WORK / (num_images * num_classes))))


def _resample(stats: BootstrapStats, num_images: int, num_classes: int) -> FloatArray:
    """Return the metrics of each bootstrap resample, (metrics, resamples)."""
    generator = np.random.default_rng(derive_seed("bootstrap", num_images))
    num_remaining, samples = count_resamples(num_images, num_classes), []
    while num_remaining:
        chunk_size = min(num_remaining, _max_chunk_size(num_images))
        indices = (
            generator.integers(num_images, size=(chunk_size, num_images)) * chunk_size + np.arange(chunk_size)[:, None]
        )
        weights = np.bincount(indices.ravel(), minlength=num_images * chunk_size).reshape(num_images, chunk_size)
        samples.append(stats.compute_weighted_metrics(weights.astype(float)))
        num_remaining -= chunk_size
    return np.concatenate(samples, 1)


def _jackknife(stats: BootstrapStats, num_images: int) -> FloatArray:
    """Return the metrics without each group of images, (metrics, groups): one image each, or 100 equal groups."""
    num_groups = min(num_images, _NUM_JACKKNIFE_GROUPS)
    if num_groups == 1:
        return np.zeros((len(BOOTSTRAP_METRICS), 1))
    image_groups, chunk_size, values = np.arange(num_images) % num_groups, _max_chunk_size(num_images), []
    for start in range(0, num_groups, chunk_size):
        omitted = np.arange(start, min(start + chunk_size, num_groups))
        values.append(stats.compute_weighted_metrics((image_groups[:, None] != omitted).astype(float)))
    return np.concatenate(values, 1)


def _max_chunk_size(num_images: int) -> int:
    return max(1, int(_MAX_WEIGHTS_PER_CHUNK / num_images))


def _varies(samples: FloatArray, value: float) -> bool:
    return bool(len(samples)) and float(np.ptp(samples)) > 1e-12 * abs(value)


def _compute_chance_calibration_error(outputs: EvalOutputs, num_draws: int) -> float:
    """Return the calibration error that a perfectly calibrated classifier with these confidences exceeds in 1 of 40
    random draws of the correct images (Bröcker and Smith, Weather and Forecasting 22, 2007)."""
    generator = np.random.default_rng(derive_seed("consistency", len(outputs.paths)))
    bin_indices, confidence = assign_bins(outputs.confidence)[0].numpy(), outputs.confidence.numpy()
    errors = [
        np.abs(np.bincount(bin_indices, (generator.random(len(confidence)) < confidence) - confidence)).sum()
        for _ in range(num_draws)
    ]
    return float(np.quantile(errors, 0.975)) / len(confidence)


def _make_wilson_metric(name: str, fraction: float, num_images: int) -> Metric:
    low, high = wilson_interval(round(fraction * num_images), num_images)
    return Metric(name, fraction, low, high, "wilson")


def _masked_mean(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Return the mean of each column over the values in the mask; NaN for a column without any."""
    count = mask.sum(0)
    total: FloatArray = np.where(mask, values, 0.0).sum(0)
    return total / np.where(count > 0, count, np.nan)
