"""Figures of a classifier with what they would be on other images: 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from torch.nn import functional

from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import (
    assign_bins,
    compute_accuracy,
    compute_calibration_error,
    compute_loss,
    count_top_k_correct,
)
from ftcli.evaluation.ranking import BoolArray, FloatArray, RankCounts, rank_counts
from ftcli.results import Metric
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson_interval

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200
_MAX_WORK = 2e9
_MAX_WEIGHTS_PER_CHUNK = 2e6
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
class BootstrapStats:
    """The outputs of a classifier, ready to be measured with any weights on the images.

    `truly`, `given` and `rightly` (classes, images) count the images of a class, those given it, and those both;
    `gaps` (bins, images) add up what is right less how sure the network was; `losses` (images,) are in nats.
    `rankings` tell each class from all others by its probability.
    """

    support: csr_matrix
    predicted: csr_matrix
    true_positives: csr_matrix
    calibration_gaps: csr_matrix
    losses: FloatArray
    class_rank_counts: tuple[RankCounts, ...]

    def compute_class_auc_and_ap(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Area under the ROC curve and average precision of each class against all others, (classes, b) each, for
        weights (images, b); NaN where a class, or all others, have no image."""
        auc_and_ap = [counts.compute_auc_and_ap(weights) for counts in self.class_rank_counts]
        return np.stack([auc for auc, _ in auc_and_ap]), np.stack([ap for _, ap in auc_and_ap])

    def compute_weighted_metrics(self, weights: FloatArray) -> FloatArray:
        """The figures of BOOTSTRAPPED in their order, (figures, b), for weights (images, b) that count how often each
        image is there; NaN where the images do not define one.

        They are what scikit-learn gives for the images so repeated: balanced_accuracy_score;
        f1_score(average="macro"), over the classes that occur as label or as answer; roc_auc_score of the second of two
        classes, and otherwise its mean over the classes that occur, each against all others, which with every class
        there is multi_class="ovr"; the mean of average_precision_score over the same classes, both of two; log_loss
        without its floor of 2e-16 below probabilities; the expected calibration error is compute_calibration_error's.
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
    """Prepare outputs to be measured again and again."""
    num_images, num_classes = outputs.logits.shape
    probabilities = outputs.logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)[0].numpy(), outputs.logits.argmax(1).numpy()
    labels, correct = outputs.labels.numpy(), (outputs.logits.argmax(1) == outputs.labels).numpy()
    bin_indices, num_bins = assign_bins(probabilities.max(1)[0])
    columns = np.arange(num_images)

    def build_matrix(values: FloatArray, rows: FloatArray, num_rows: int) -> csr_matrix:
        return csr_matrix((values, (rows, columns)), shape=(num_rows, num_images))

    return BootstrapStats(
        support=build_matrix(np.ones(num_images), labels, num_classes),
        predicted=build_matrix(np.ones(num_images), predicted, num_classes),
        true_positives=build_matrix(correct.astype(float), labels, num_classes),
        calibration_gaps=build_matrix(correct - confidence, bin_indices.numpy(), num_bins),
        losses=functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none").numpy(),
        class_rank_counts=tuple(
            rank_counts(probabilities[:, label].numpy(), labels == label) for label in range(num_classes)
        ),
    )


def compute_metrics(outputs: EvalOutputs, stats: BootstrapStats) -> tuple[Metric, ...]:
    """All figures of a classifier; top_5_accuracy only where there are more than five classes.

    Shares of images have Wilson's interval. The others have that of a bootstrap (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993): the images are drawn again with replacement, 1,000 times, fewer, but 200 at least, where
    there are more than 2 million images times classes, from a seed that depends on their number alone, and those that
    define the figure give percentiles. What chance does to a figure of few images, drawing again does once more: where
    a class has a handful, average precision and the calibration error rise and macro F1 falls, so that percentiles lie
    beside the truth, or beside the value even. Therefore the interval has the percentiles and their mirror images about
    the value, within what the figure can be. That of the calibration error begins at 0 where a classifier whose
    probabilities are right would come to as much in more than one case of 40. Where every resample gives the same, as
    those of images that are all right do, they say nothing of other images, and there is no interval.
    """
    num_images, num_classes = outputs.logits.shape
    metrics = [_make_wilson_metric("accuracy", compute_accuracy(outputs), num_images)]
    if num_classes > _TOP_K:
        metrics.append(
            _make_wilson_metric("top_5_accuracy", count_top_k_correct(outputs, _TOP_K) / num_images, num_images)
        )
    exact = {"log_loss": compute_loss(outputs), "expected_calibration_error": compute_calibration_error(outputs)}
    values = stats.compute_weighted_metrics(np.ones((num_images, 1)))[:, 0]
    resampled = _bootstrap_metrics(stats, num_images, num_classes)
    for name, value, samples in zip(BOOTSTRAP_METRICS, values, resampled, strict=True):
        defined_samples = samples[~np.isnan(samples)]
        if np.isnan(value) or not len(defined_samples) or np.ptp(defined_samples) <= 1e-12 * abs(float(value)):
            metrics.append(Metric(name, None if np.isnan(value) else float(value), None, None, "bootstrap"))
            continue
        estimate = exact.get(name, float(value))
        low, high = map(float, np.quantile(defined_samples, (0.025, 0.975)))
        low, high = max(0.0, min(low, 2 * estimate - high)), max(high, 2 * estimate - low)
        if name == "expected_calibration_error" and estimate <= _compute_chance_calibration_error(
            outputs, len(samples)
        ):
            low = 0.0
        metrics.append(Metric(name, estimate, low, high if name == "log_loss" else min(1.0, high), "bootstrap"))
    return tuple(metrics)


def count_resamples(num_images: int, num_classes: int) -> int:
    """How often so many images are drawn again: RESAMPLES, or as many as keep the work within bounds."""
    return int(min(MAX_RESAMPLES, max(MIN_RESAMPLES, _MAX_WORK / (num_images * num_classes))))


def _bootstrap_metrics(stats: BootstrapStats, num_images: int, num_classes: int) -> FloatArray:
    """The figures of each resample, (figures, resamples)."""
    generator = np.random.default_rng(derive_seed("bootstrap", num_images))
    num_remaining, samples = count_resamples(num_images, num_classes), []
    while num_remaining:
        chunk_size = min(num_remaining, max(1, int(_MAX_WEIGHTS_PER_CHUNK / num_images)))
        indices = (
            generator.integers(num_images, size=(chunk_size, num_images)) * chunk_size + np.arange(chunk_size)[:, None]
        )
        weights = np.bincount(indices.ravel(), minlength=num_images * chunk_size).reshape(num_images, chunk_size)
        samples.append(stats.compute_weighted_metrics(weights.astype(float)))
        num_remaining -= chunk_size
    return np.concatenate(samples, 1)


def _compute_chance_calibration_error(outputs: EvalOutputs, num_draws: int) -> float:
    """The calibration error that a classifier with these probabilities exceeds in one of 40 draws of what is right if
    each is right as often as it says (Bröcker and Smith, Weather and Forecasting 22, 2007)."""
    generator = np.random.default_rng(derive_seed("consistency", len(outputs.paths)))
    confidence = outputs.logits.double().softmax(1).max(1)[0]
    bin_indices, probabilities = assign_bins(confidence)[0].numpy(), confidence.numpy()
    errors = [
        np.abs(np.bincount(bin_indices, (generator.random(len(probabilities)) < probabilities) - probabilities)).sum()
        for _ in range(num_draws)
    ]
    return float(np.quantile(errors, 0.975)) / len(probabilities)


def _make_wilson_metric(name: str, fraction: float, num_images: int) -> Metric:
    low, high = wilson_interval(round(fraction * num_images), num_images)
    return Metric(name, fraction, low, high, "wilson")


def _masked_mean(values: FloatArray, mask: BoolArray) -> FloatArray:
    """The mean of each column over what is defined of it; NaN where nothing is."""
    count = mask.sum(0)
    total: FloatArray = np.where(mask, values, 0.0).sum(0)
    return total / np.where(count > 0, count, np.nan)
