"""Tests of the plots of one run and of several runs."""

from __future__ import annotations

from dataclasses import replace

from ftcli.results import EpochMetrics
from ftcli.runs.curves import _choose_line_style, plot_comparison, render_curves


def _render(stage: str) -> bytes:
    history = [
        EpochMetrics(stage, n, None if n == 0 else 0.5, None if n == 0 else 0.6, 0.7, 0.5, 0.1, 1, 1) for n in (0, 1)
    ]
    return render_curves(history)


def test_render_curves_labels_stages_in_any_script() -> None:
    plots = {_render(stage) for stage in ("head", "头部", "الكل", "कदम", "x" * 100)}
    assert len(plots) == 5
    assert all(plot.startswith(b"\x89PNG") for plot in plots)


HISTORY = (
    EpochMetrics("head", 0, None, None, 0.7, 0.5, None, 1, None),
    EpochMetrics("head", 1, 0.6, 0.6, 0.65, 0.6, 0.1, 1, 1),
    EpochMetrics("all", 0, None, None, 0.65, 0.6, None, 1, None),
    EpochMetrics("all", 1, 0.5, 0.7, 0.66, 0.7, 0.1, 1, 1),
)


def test_plot_comparison_shows_all_values_in_any_script() -> None:
    last = HISTORY[3]
    changed_metrics = (
        replace(last, train_loss=0.4),
        replace(last, train_accuracy=0.6),
        replace(last, val_loss=0.67),
        replace(last, val_accuracy=0.6),
    )
    renamed = (*HISTORY[:2], *(replace(metrics, stage="الكل 猫") for metrics in HISTORY[2:]))
    histories = [HISTORY, *((*HISTORY[:3], metrics) for metrics in changed_metrics), renamed]
    cases = [(["a", "b"], [HISTORY, history]) for history in histories]
    # By default matplotlib omits names that begin with _ and parses $x$ as math.
    cases += [(["a", name], [HISTORY, HISTORY]) for name in ("_b", "_c", r"$\bad$", "x" * 300)]
    plots = [plot_comparison(names, run_histories) for names, run_histories in cases]
    assert all(plot.startswith(b"\x89PNG") for plot in plots)
    assert len(set(plots)) == len(plots)


def test_choose_line_style_differs_between_runs() -> None:
    styles = [_choose_line_style(run_index) for run_index in range(24)]
    assert len({style["color"] for style in styles[:8]}) == len({style["marker"] for style in styles[:8]}) == 8
    assert len({tuple(style.values()) for style in styles}) == 24
