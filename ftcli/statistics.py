"""Statements about shares that hold beyond the images at hand."""

from __future__ import annotations


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of `images` (at least 1) independent images (Wilson, JASA 22, 1927)."""
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
