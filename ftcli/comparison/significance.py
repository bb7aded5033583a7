"""Significance of the difference of two classifiers on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ftcli.results import PairwiseTest, format_count

SIGNIFICANCE_LEVEL = 0.05
POWER = 0.8
NUM_RESAMPLES = 10_000

LabelArray = NDArray[np.int64]


@dataclass(frozen=True)
class RunPredictions:
    """Predicted and true class indices of a run, with images and classes in an order that all runs share."""

    name: str
    predicted: LabelArray
    labels: LabelArray

    @property
    def correct(self) -> NDArray[np.bool_]:
        """The images whose predicted class is their true class."""
        return np.equal(self.predicted, self.labels)


def run_pairwise_tests(predictions: Sequence[RunPredictions], seed: int = 0) -> tuple[PairwiseTest, ...]:
    """Test every pair of runs: McNemar's exact test with Holm correction, and a paired percentile bootstrap.

    The same predictions and seed give the same result.
    """
    pairs = list(combinations(predictions, 2))
    counts = [_count_discordant(first, second) for first, second in pairs]
    p_values = [mcnemar(*count) for count in counts]
    corrected_p_values = apply_holm_correction(p_values)
    tests = []
    for (first, second), (only_first, only_second), p_value, p_corrected in zip(
        pairs, counts, p_values, corrected_p_values, strict=True
    ):
        num_images = len(first.labels)
        low, high = bootstrap_difference(only_first, only_second, num_images, seed)
        test = PairwiseTest(
            first=first.name,
            second=second.name,
            only_first=only_first,
            only_second=only_second,
            difference=(only_first - only_second) / num_images,
            low=low,
            high=high,
            p_value=p_value,
            p_corrected=p_corrected,
            significant=p_corrected < SIGNIFICANCE_LEVEL,
            words="",
        )
        is_identical = bool(np.array_equal(first.predicted, second.predicted))
        tests.append(replace(test, words=_describe_difference(test, num_images, len(pairs), is_identical)))
    return tuple(tests)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test (Psychometrika 12, 1947) for the numbers of images that only
    one of the runs predicts correctly."""
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue) if only_first + only_second else 1.0


def apply_holm_correction(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p values with Holm's correction (Scandinavian Journal of Statistics 6, 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = running_max
    return tuple(corrected)


def bootstrap_difference(only_first: int, only_second: int, num_images: int, seed: int) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the difference of two accuracies.

    An image counts for the first run, the second, or neither, so that resampling images is a multinomial draw of three
    counts.
    """
    probabilities = np.array([only_first, only_second, num_images - only_first - only_second]) / num_images
    counts = np.random.default_rng(seed).multinomial(num_images, probabilities, size=NUM_RESAMPLES)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / num_images, [0.025, 0.975])
    return float(low), float(high)


def compute_sample_size(only_first: int, only_second: int, num_images: int, num_pairs: int = 1) -> int:
    """Return the number of images at which McNemar's test has the given POWER, for the measured difference and
    disagreement (Connor, Biometrics 43, 1987), with the significance level divided by the number of pairs."""
    from scipy.stats import norm  # slow to import

    disagreement, difference = (only_first + only_second) / num_images, abs(only_first - only_second) / num_images
    z_alpha, z_power = norm.ppf(1 - SIGNIFICANCE_LEVEL / num_pairs / 2), norm.ppf(POWER)
    root = z_alpha * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
    return math.ceil(float(root / difference) ** 2)


def _count_discordant(first: RunPredictions, second: RunPredictions) -> tuple[int, int]:
    """Count the images that only the first run predicts correctly, and those that only the second does."""
    first_correct, second_correct = first.correct, second.correct
    return int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())


def _describe_difference(test: PairwiseTest, num_images: int, num_pairs: int, is_identical: bool) -> str:
    if is_identical:
        return f"{test.first} and {test.second} predict the same class for every image."
    if test.only_first == test.only_second == 0:
        return f"{test.first} and {test.second} are correct on the same images."
    better, other = test.first, test.second
    won, lost, low, high = test.only_first, test.only_second, test.low, test.high
    if won < lost:
        better, other, won, lost, low, high = other, better, lost, won, -high, -low
    gain = f"{_format_points((won - lost) / num_images)} points better" if won > lost else "equal accuracy"
    sentence = (
        f"{better} is correct on {format_count(won, 'image')} where {other} is wrong, and wrong on {lost or 'none'} "
        f"where {other} is correct: {gain} (95% interval {_format_points(low)} to {_format_points(high)})."
    )
    if won == lost:
        return sentence
    p_text = f"McNemar's test: {_format_p_value(test.p_value)}"
    if num_pairs > 1:
        p_text += f", {_format_p_value(test.p_corrected)} with Holm correction for {num_pairs} pairs"
    if test.significant:
        return f"{sentence} {p_text}: significant."
    num_needed = _round_up(compute_sample_size(won, lost, num_images, num_pairs))
    return f"{sentence} {p_text}: not significant; a difference of this size needs about {num_needed:,} images."


def _format_points(fraction: float) -> str:
    """Return a fraction in percentage points, with one significant digit below 0.05."""
    return f"{100 * fraction:.1f}" if abs(fraction) >= 0.0005 else f"{100 * fraction:.1g}" if fraction else "0.0"


def _format_p_value(p_value: float) -> str:
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def _round_up(count: int) -> int:
    """Round up to two significant digits."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
