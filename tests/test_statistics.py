"""Intervals of shares, against values that can be worked out by hand."""

from __future__ import annotations

import pytest

from ftcli.statistics import wilson_interval


@pytest.mark.parametrize(("successes", "images"), [(0, 1), (1, 1), (5, 10), (541, 656), (656, 656)])
def test_wilson_interval_solves_its_equation(successes: int, images: int) -> None:
    # A bound p is where the share lies 1.96 standard errors of p away: (share - p)^2 = z^2 p (1 - p) / n.
    z = 1.959963984540054
    share = successes / images
    for bound in wilson_interval(successes, images):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / images, abs=1e-12)
    low, high = wilson_interval(successes, images)
    assert 0 <= low <= share <= high <= 1
    assert low < high
