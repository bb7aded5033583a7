"""Tests of the plot of a run."""

from __future__ import annotations

from ftcli.results import EpochMetrics
from ftcli.runs.curves import render_curves


def _render(stage: str) -> bytes:
    history = [
        EpochMetrics(stage, n, None if n == 0 else 0.5, None if n == 0 else 0.6, 0.7, 0.5, 0.1, 1, 1) for n in (0, 1)
    ]
    return render_curves(history)


def test_render_curves_labels_stages_in_any_script() -> None:
    plots = {_render(stage) for stage in ("head", "头部", "الكل", "कदम", "x" * 100)}
    assert len(plots) == 5
    assert all(plot.startswith(b"\x89PNG") for plot in plots)
