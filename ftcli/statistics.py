"""Confidence intervals of fractions."""

from __future__ import annotations


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of the fraction successes / total (Wilson, JASA 22, 1927); `total` is positive."""
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
