"""Figures of a classifier with what they would be on other images: 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from torch.nn import functional

from ftcli.inference.metrics import (
    count_top,
    measure_accuracy,
    measure_calibration,
    measure_loss,
    place_in_bins,
)
from ftcli.inference.outputs import Outputs
from ftcli.inference.ranking import Floats, Mask, Ranking, rank
from ftcli.results import Figure
from ftcli.runtime import derive_seed
from ftcli.statistics import wilson

RESAMPLES = 1000
FEWEST = 200
_WORK = 2e9
_AT_ONCE = 2e6
_TOP = 5

BOOTSTRAPPED = (
    "balanced_accuracy",
    "macro_f1",
    "roc_auc",
    "average_precision",
    "log_loss",
    "expected_calibration_error",
)


@dataclass(frozen=True)
class Tally:
    """The outputs of a classifier, ready to be measured with any weights on the images.

    `truly`, `given` and `rightly` (classes, images) count the images of a class, those given it, and those both;
    `gaps` (bins, images) add up what is right less how sure the network was; `losses` (images,) are in nats.
    `rankings` tell each class from all others by its probability.
    """

    truly: csr_matrix
    given: csr_matrix
    rightly: csr_matrix
    gaps: csr_matrix
    losses: Floats
    rankings: tuple[Ranking, ...]

    def rank_classes(self, weights: Floats) -> tuple[Floats, Floats]:
        """Area under the ROC curve and average precision of each class against all others, (classes, b) each, for
        weights (images, b); NaN where a class, or all others, have no image."""
        measured = [ranking.measure(weights) for ranking in self.rankings]
        return np.stack([area for area, _ in measured]), np.stack([precision for _, precision in measured])

    def measure(self, weights: Floats) -> Floats:
        """The figures of BOOTSTRAPPED in their order, (figures, b), for weights (images, b) that count how often each
        image is there; NaN where the images do not define one.

        They are what scikit-learn gives for the images so repeated: balanced_accuracy_score;
        f1_score(average="macro"), over the classes that occur as label or as answer; roc_auc_score of the second of two
        classes, and otherwise its mean over the classes that occur, each against all others, which with every class
        there is multi_class="ovr"; the mean of average_precision_score over the same classes, both of two; log_loss
        without its floor of 2e-16 below probabilities; the expected calibration error is measure_calibration's.
        """
        truly, given, rightly = self.truly @ weights, self.given @ weights, self.rightly @ weights
        images = weights.sum(0)
        areas, precisions = self.rank_classes(weights)
        return np.stack(
            [
                _average(rightly / np.maximum(truly, 1), truly > 0),
                _average(2 * rightly / np.maximum(truly + given, 1), truly + given > 0),
                areas[1] if len(areas) == 2 else _average(areas, ~np.isnan(areas)),
                _average(precisions, ~np.isnan(precisions)),
                self.losses @ weights / images,
                np.abs(self.gaps @ weights).sum(0) / images,
            ]
        )


def tally(outputs: Outputs) -> Tally:
    """Prepare outputs to be measured again and again."""
    images, classes = outputs.logits.shape
    shares = outputs.logits.double().softmax(1)
    sure, given = shares.max(1)[0].numpy(), outputs.logits.argmax(1).numpy()
    labels, right = outputs.labels.numpy(), (outputs.logits.argmax(1) == outputs.labels).numpy()
    places, bins = place_in_bins(shares.max(1)[0])
    columns = np.arange(images)

    def sort(values: Floats, rows: Floats, count: int) -> csr_matrix:
        return csr_matrix((values, (rows, columns)), shape=(count, images))

    return Tally(
        truly=sort(np.ones(images), labels, classes),
        given=sort(np.ones(images), given, classes),
        rightly=sort(right.astype(float), labels, classes),
        gaps=sort(right - sure, places.numpy(), bins),
        losses=functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none").numpy(),
        rankings=tuple(rank(shares[:, label].numpy(), labels == label) for label in range(classes)),
    )


def measure_figures(outputs: Outputs, tallied: Tally) -> tuple[Figure, ...]:
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
    images, classes = outputs.logits.shape
    figures = [_share("accuracy", measure_accuracy(outputs), images)]
    if classes > _TOP:
        figures.append(_share("top_5_accuracy", count_top(outputs, _TOP) / images, images))
    exact = {"log_loss": measure_loss(outputs), "expected_calibration_error": measure_calibration(outputs)}
    values = tallied.measure(np.ones((images, 1)))[:, 0]
    resampled = _resample(tallied, images, classes)
    for name, value, drawn in zip(BOOTSTRAPPED, values, resampled, strict=True):
        defined = drawn[~np.isnan(drawn)]
        if np.isnan(value) or not len(defined) or np.ptp(defined) <= 1e-12 * abs(float(value)):
            figures.append(Figure(name, None if np.isnan(value) else float(value), None, None, "bootstrap"))
            continue
        own = exact.get(name, float(value))
        low, high = map(float, np.quantile(defined, (0.025, 0.975)))
        low, high = max(0.0, min(low, 2 * own - high)), max(high, 2 * own - low)
        if name == "expected_calibration_error" and own <= _measure_chance(outputs, len(drawn)):
            low = 0.0
        figures.append(Figure(name, own, low, high if name == "log_loss" else min(1.0, high), "bootstrap"))
    return tuple(figures)


def count_resamples(images: int, classes: int) -> int:
    """How often so many images are drawn again: RESAMPLES, or as many as keep the work within bounds."""
    return int(min(RESAMPLES, max(FEWEST, _WORK / (images * classes))))


def _resample(tallied: Tally, images: int, classes: int) -> Floats:
    """The figures of each resample, (figures, resamples)."""
    generator = np.random.default_rng(derive_seed("bootstrap", images))
    left, drawn = count_resamples(images, classes), []
    while left:
        count = min(left, max(1, int(_AT_ONCE / images)))
        chosen = generator.integers(images, size=(count, images)) * count + np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=images * count).reshape(images, count)
        drawn.append(tallied.measure(weights.astype(float)))
        left -= count
    return np.concatenate(drawn, 1)


def _measure_chance(outputs: Outputs, draws: int) -> float:
    """The calibration error that a classifier with these probabilities exceeds in one of 40 draws of what is right if
    each is right as often as it says (Bröcker and Smith, Weather and Forecasting 22, 2007)."""
    generator = np.random.default_rng(derive_seed("consistency", len(outputs.paths)))
    sure = outputs.logits.double().softmax(1).max(1)[0]
    places, own = place_in_bins(sure)[0].numpy(), sure.numpy()
    errors = [np.abs(np.bincount(places, (generator.random(len(own)) < own) - own)).sum() for _ in range(draws)]
    return float(np.quantile(errors, 0.975)) / len(own)


def _share(name: str, share: float, images: int) -> Figure:
    low, high = wilson(round(share * images), images)
    return Figure(name, share, low, high, "wilson")


def _average(values: Floats, defined: Mask) -> Floats:
    """The mean of each column over what is defined of it; NaN where nothing is."""
    count = defined.sum(0)
    total: Floats = np.where(defined, values, 0.0).sum(0)
    return total / np.where(count > 0, count, np.nan)
