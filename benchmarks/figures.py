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
    both = min(len(theirs), len(ours))
    ratios = [their / our for their, our in zip(theirs[:both], ours[:both], strict=True)]
    return Spread(median(theirs[:both]) / median(ours[:both]), min(ratios), max(ratios))


def standard_error(accuracy: float, images: int) -> float:
    """One standard error of an accuracy that was measured on so many images."""
    return float((accuracy * (1 - accuracy) / images) ** 0.5)


def reach(course: Sequence[float], accuracies: Sequence[float], wanted: float) -> float | None:
    """The seconds after which an accuracy was first at least the wanted one; None if it never was."""
    return next((at for at, value in zip(course, accuracies, strict=True) if value >= wanted), None)


def extend(measured: tuple[float, float], at: tuple[float, float], wanted: float) -> float:
    """The value at `wanted` of the line through two measured values at two places."""
    (first, second), (begin, end) = measured, at
    return first + (second - first) * (wanted - begin) / (end - begin)
