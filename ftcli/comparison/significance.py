"""Whether one classifier is better than another on the same images, or was lucky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ftcli.results import PairwiseTest, format_count

SIGNIFICANCE_LEVEL = 0.05
"""A difference counts as more than luck where chance alone would give one as large less often than this."""
POWER = 0.8
"""How often the images that are said to be needed would tell the difference."""
NUM_RESAMPLES = 10_000

LabelArray = NDArray[np.int64]


@dataclass(frozen=True)
class RunPredictions:
    """What a run answers to images that all runs have in the same order: the place of the class that each was given,
    and that of its label, both in an order of classes that is the same for all."""

    name: str
    predicted: LabelArray
    labels: LabelArray

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images are given their label."""
        return np.equal(self.predicted, self.labels)


def run_pairwise_tests(predictions: Sequence[RunPredictions], seed: int = 0) -> tuple[PairwiseTest, ...]:
    """Compare every pair of runs: McNemar's exact test, corrected for the number of pairs (Holm), and the interval of
    a paired bootstrap. The same answers and seed give the same figures."""
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
    """The two-sided p value of McNemar's exact test (Psychometrika 12, 1947), of how many images one run alone gets
    right and how many the other alone: where neither is better, each falls to either as a coin does."""
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue) if only_first + only_second else 1.0


def apply_holm_correction(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p values after Holm's correction (Scandinavian Journal of Statistics 6, 1979), in their own order: whichever
    of them are held below a level, the chance that any is there by luck alone is below it."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = running_max
    return tuple(corrected)


def bootstrap_difference(only_first: int, only_second: int, num_images: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two accuracies over resamples of the images.

    An image counts for one run, for the other, or for neither, so that drawing `images` of them with replacement is
    drawing three counts from a multinomial distribution.
    """
    probabilities = np.array([only_first, only_second, num_images - only_first - only_second]) / num_images
    counts = np.random.default_rng(seed).multinomial(num_images, probabilities, size=NUM_RESAMPLES)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / num_images, [0.025, 0.975])
    return float(low), float(high)


def compute_sample_size(only_first: int, only_second: int, num_images: int, num_pairs: int = 1) -> int:
    """How many images would tell the difference in POWER of all cases, if the runs truly differ by as much as on these
    and disagree as often (Connor, Biometrics 43, 1987); with the level divided by the number of pairs."""
    from scipy.stats import norm  # slow to import

    disagreement, difference = (only_first + only_second) / num_images, abs(only_first - only_second) / num_images
    z_alpha, z_power = norm.ppf(1 - SIGNIFICANCE_LEVEL / num_pairs / 2), norm.ppf(POWER)
    root = z_alpha * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
    return math.ceil(float(root / difference) ** 2)


def _count_discordant(first: RunPredictions, second: RunPredictions) -> tuple[int, int]:
    """How many images the first alone gets right, and how many the second alone."""
    first_correct, second_correct = first.correct, second.correct
    return int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())


def _describe_difference(test: PairwiseTest, num_images: int, num_pairs: int, is_identical: bool) -> str:
    if is_identical:
        return f"{test.first} and {test.second} give every image the same class: nothing tells them apart."
    if test.only_first == test.only_second == 0:
        return f"{test.first} and {test.second} are right on the same images: nothing tells them apart."
    better, other, won, lost, low, high = (
        test.first,
        test.second,
        test.only_first,
        test.only_second,
        test.low,
        test.high,
    )
    if won < lost:
        better, other, won, lost, low, high = other, better, lost, won, -high, -low
    gain_text = f"{_format_points((won - lost) / num_images)} points better" if won > lost else "neither is better"
    counts_text = (
        f"{better} is right on {format_count(won, 'image')} that {other} gets wrong, and wrong on {lost or 'none'} that "
        f"{other} gets right: {gain_text} (95 %: {_format_points(low)} to {_format_points(high)})."
    )
    if won == lost:
        return counts_text
    chance_text = f"Chance alone would give a difference as large in {_format_percent(test.p_value)} of cases"
    if num_pairs > 1:
        chance_text += f", or {_format_percent(test.p_corrected)} with {num_pairs} pairs to find one in"
    if test.significant:
        return f"{counts_text} {chance_text}: more than luck."
    sample_size = compute_sample_size(won, lost, num_images, num_pairs)
    return f"{counts_text} {chance_text}: this may well be luck; if it is none, some {_round_up(sample_size):,} images are needed to tell."


def _format_points(fraction: float) -> str:
    """A share in percent, with a digit that matters: of many images one is little, but not nothing."""
    return f"{100 * fraction:.1f}" if abs(fraction) >= 0.0005 else f"{100 * fraction:.1g}" if fraction else "0.0"


def _format_percent(fraction: float) -> str:
    return (
        "less than 0.01 %"
        if fraction < 0.0001
        else f"{100 * fraction:.2g} %"
        if fraction < 0.0995
        else f"{100 * fraction:.0f} %"
    )


def _round_up(count: int) -> int:
    """The count with two digits that matter, rounded up."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
