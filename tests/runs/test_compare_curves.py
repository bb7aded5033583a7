"""The picture of several runs."""

from __future__ import annotations

from dataclasses import replace

from ftcli.results import EpochMetrics
from ftcli.runs.compare_curves import _choose_line_style, plot_comparison

ROWS = (
    EpochMetrics("head", 0, None, None, 0.7, 0.5, None, 1, None),
    EpochMetrics("head", 1, 0.6, 0.6, 0.65, 0.6, 0.1, 1, 1),
    EpochMetrics("all", 0, None, None, 0.65, 0.6, None, 1, None),
    EpochMetrics("all", 1, 0.5, 0.7, 0.66, 0.7, 0.1, 1, 1),
)


def test_plot_comparison_shows_all_values_in_any_script() -> None:
    last = ROWS[3]
    others = (
        replace(last, train_loss=0.4),
        replace(last, train_accuracy=0.6),
        replace(last, val_loss=0.67),
        replace(last, val_accuracy=0.6),
    )
    renamed = (*ROWS[:2], *(replace(row, stage="الكل 猫") for row in ROWS[2:]))
    drawn = [(["a", "b"], [ROWS, rows]) for rows in (ROWS, *((*ROWS[:3], row) for row in others), renamed)]
    # A name that begins with _ is left out by matplotlib, and $x$ is a formula to it, if it is let.
    drawn += [(["a", name], [ROWS, ROWS]) for name in ("_b", "_c", r"$\bad$", "x" * 300)]
    pictures = [plot_comparison(names, runs) for names, runs in drawn]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == len(pictures)


def test_line_styles_differ() -> None:
    looks = [_choose_line_style(number) for number in range(24)]
    assert len({look["color"] for look in looks[:8]}) == len({look["marker"] for look in looks[:8]}) == 8
    assert len({tuple(look.values()) for look in looks}) == 24
