"""Whether one classifier is better than another on the same images, or was lucky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ftcli.results import Difference, tell_count

LEVEL = 0.05
"""A difference counts as more than luck where chance alone would give one as large less often than this."""
POWER = 0.8
"""How often the images that are said to be needed would tell the difference."""
RESAMPLES = 10_000

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a run answers to images that all runs have in the same order: the place of the class that each was given,
    and that of its label, both in an order of classes that is the same for all."""

    name: str
    given: Places
    labels: Places

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images are given their label."""
        return np.equal(self.given, self.labels)


def tell_differences(answers: Sequence[Answers], seed: int = 0) -> tuple[Difference, ...]:
    """Compare every pair of runs: McNemar's exact test, corrected for the number of pairs (Holm), and the interval of
    a paired bootstrap. The same answers and seed give the same figures."""
    pairs = list(combinations(answers, 2))
    counts = [_count(first, second) for first, second in pairs]
    plain = [mcnemar(*count) for count in counts]
    corrected = correct_holm(plain)
    differences = []
    for (first, second), (ahead, behind), p_value, p_corrected in zip(pairs, counts, plain, corrected, strict=True):
        images = len(first.labels)
        low, high = bootstrap_difference(ahead, behind, images, seed)
        found = Difference(
            first=first.name,
            second=second.name,
            only_first=ahead,
            only_second=behind,
            difference=(ahead - behind) / images,
            low=low,
            high=high,
            p_value=p_value,
            p_corrected=p_corrected,
            significant=p_corrected < LEVEL,
            words="",
        )
        same = bool(np.array_equal(first.given, second.given))
        differences.append(replace(found, words=_tell(found, images, len(pairs), same)))
    return tuple(differences)


def mcnemar(ahead: int, behind: int) -> float:
    """The two-sided p value of McNemar's exact test (Psychometrika 12, 1947), of how many images one run alone gets
    right and how many the other alone: where neither is better, each falls to either as a coin does."""
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(ahead, ahead + behind, 0.5).pvalue) if ahead + behind else 1.0


def correct_holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p values after Holm's correction (Scandinavian Journal of Statistics 6, 1979), in their own order: whichever
    of them are held below a level, the chance that any is there by luck alone is below it."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return tuple(corrected)


def bootstrap_difference(ahead: int, behind: int, images: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two accuracies over resamples of the images.

    An image counts for one run, for the other, or for neither, so that drawing `images` of them with replacement is
    drawing three counts from a multinomial distribution.
    """
    shares = np.array([ahead, behind, images - ahead - behind]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / images, [0.025, 0.975])
    return float(low), float(high)


def count_needed(ahead: int, behind: int, images: int, pairs: int = 1) -> int:
    """How many images would tell the difference in POWER of all cases, if the runs truly differ by as much as on these
    and disagree as often (Connor, Biometrics 43, 1987); with the level divided by the number of pairs."""
    from scipy.stats import norm  # slow to import

    disagree, differ = (ahead + behind) / images, abs(ahead - behind) / images
    level, power = norm.ppf(1 - LEVEL / pairs / 2), norm.ppf(POWER)
    root = level * math.sqrt(disagree) + power * math.sqrt(disagree - differ**2)
    return math.ceil(float(root / differ) ** 2)


def _count(first: Answers, second: Answers) -> tuple[int, int]:
    """How many images the first alone gets right, and how many the second alone."""
    right, other = first.right, second.right
    return int((right & ~other).sum()), int((other & ~right).sum())


def _tell(found: Difference, images: int, pairs: int, same: bool) -> str:
    if same:
        return f"{found.first} and {found.second} give every image the same class: nothing tells them apart."
    if found.only_first == found.only_second == 0:
        return f"{found.first} and {found.second} are right on the same images: nothing tells them apart."
    better, other, won, lost, low, high = (
        found.first,
        found.second,
        found.only_first,
        found.only_second,
        found.low,
        found.high,
    )
    if won < lost:
        better, other, won, lost, low, high = other, better, lost, won, -high, -low
    gain = f"{_points((won - lost) / images)} points better" if won > lost else "neither is better"
    counted = (
        f"{better} is right on {tell_count(won, 'image')} that {other} gets wrong, and wrong on {lost or 'none'} that "
        f"{other} gets right: {gain} (95 %: {_points(low)} to {_points(high)})."
    )
    if won == lost:
        return counted
    chance = f"Chance alone would give a difference as large in {_percent(found.p_value)} of cases"
    if pairs > 1:
        chance += f", or {_percent(found.p_corrected)} with {pairs} pairs to find one in"
    if found.significant:
        return f"{counted} {chance}: more than luck."
    needed = count_needed(won, lost, images, pairs)
    return (
        f"{counted} {chance}: this may well be luck; if it is none, some {_round(needed):,} images are needed to tell."
    )


def _points(share: float) -> str:
    """A share in percent, with a digit that matters: of many images one is little, but not nothing."""
    return f"{100 * share:.1f}" if abs(share) >= 0.0005 else f"{100 * share:.1g}" if share else "0.0"


def _percent(share: float) -> str:
    return (
        "less than 0.01 %" if share < 0.0001 else f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
    )


def _round(count: int) -> int:
    """The count with two digits that matter, rounded up."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
