"""Statistics of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def compare_rounds(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Return the ratio theirs over ours of the medians, with the lowest and highest ratio of a round; rounds that only
    one of them ran are ignored."""
    num_rounds = min(len(theirs), len(ours))
    ratios = [
        their_value / our_value for their_value, our_value in zip(theirs[:num_rounds], ours[:num_rounds], strict=True)
    ]
    return Spread(median(theirs[:num_rounds]) / median(ours[:num_rounds]), min(ratios), max(ratios))


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy measured on `num_images` images."""
    return float((accuracy * (1 - accuracy) / images) ** 0.5)


def time_to_accuracy(elapsed: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """Return the seconds until the accuracy first reached the target; None if it never did."""
    return next((seconds for seconds, value in zip(elapsed, accuracies, strict=True) if value >= target), None)


def interpolate_linearly(values: tuple[float, float], at: tuple[float, float], x: float) -> float:
    """Return the value at `wanted` on the line through two points."""
    (first, second), (x0, x1) = values, at
    return first + (second - first) * (x - x0) / (x1 - x0)
