"""The arithmetic of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """The median of several measurements, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def compare_rounds(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as much they took as we, over the rounds that both have played: the ratio of the medians, and the
    least and greatest of a round's."""
    num_rounds = min(len(theirs), len(ours))
    ratios = [
        their_value / our_value for their_value, our_value in zip(theirs[:num_rounds], ours[:num_rounds], strict=True)
    ]
    return Spread(median(theirs[:num_rounds]) / median(ours[:num_rounds]), min(ratios), max(ratios))


def standard_error(accuracy: float, images: int) -> float:
    """One standard error of an accuracy that was measured on so many images."""
    return float((accuracy * (1 - accuracy) / images) ** 0.5)


def time_to_accuracy(elapsed: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """The seconds after which an accuracy was first at least the wanted one; None if it never was."""
    return next((seconds for seconds, value in zip(elapsed, accuracies, strict=True) if value >= target), None)


def interpolate_linearly(values: tuple[float, float], at: tuple[float, float], x: float) -> float:
    """The value at `wanted` of the line through two measured values at two places."""
    (first, second), (x0, x1) = values, at
    return first + (second - first) * (x - x0) / (x1 - x0)
