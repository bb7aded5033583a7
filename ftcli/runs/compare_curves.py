"""The picture of several runs: their losses and accuracies over the epochs, laid over one another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ftcli.plotting import PALETTE, create_figure, fit_text, render_png
from ftcli.results import EpochMetrics
from ftcli.runs.curves import label_stages, metric_points, split_by_stage, style_axes

_MARKERS = "osD^vPX*<>hd"
_LINE_STYLES = ("-", "--", "-.")


def plot_comparison(names: Sequence[str], histories: Sequence[Sequence[EpochMetrics]]) -> bytes:
    """A PNG with the losses above and the accuracies below, where a run has a colour and a marker: validation in a
    strong line, training in a thin dotted one. A ring is around the epoch of the lowest validation loss."""
    figure = create_figure(9, 7, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for number, history in enumerate(histories):
        _plot_run(axes, history, _choose_line_style(number))
    stages_by_start: dict[int, list[str]] = {}
    for start, stage_history in chain.from_iterable(map(split_by_stage, histories)):
        if stage_history[0].stage not in (names_here := stages_by_start.setdefault(start, [])):
            names_here.append(stage_history[0].stage)
    style_axes(axes, stages_by_start)
    label_stages(axes[0], [(start, ", ".join(names_here)) for start, names_here in stages_by_start.items()])
    _add_legend(figure, names)
    return render_png(figure)


def _choose_line_style(number: int) -> dict[str, Any]:
    """How the lines of a run look; no two of the first 24 look the same."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINE_STYLES[number // len(PALETTE) % len(_LINE_STYLES)],
        "markersize": 5,
    }


def _plot_run(axes: Sequence[Any], history: Sequence[EpochMetrics], line_style: dict[str, Any]) -> None:
    best = min(history, key=lambda row: row.val_loss)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for start, stage_history in split_by_stage(history):
            train_style = line_style | {"linestyle": ":", "linewidth": 1, "markersize": 2.5, "alpha": 0.8}
            axis.plot(*metric_points(start, stage_history, f"train_{name}"), **train_style)
            axis.plot(*metric_points(start, stage_history, f"val_{name}"), **line_style, linewidth=1.8)
            if any(row is best for row in stage_history):
                point = start + best.epoch, getattr(best, f"val_{name}")
                axis.plot(*point, "o", markersize=12, markerfacecolor="none", markeredgecolor=line_style["color"])


def _add_legend(figure: Any, names: Sequence[str]) -> None:
    """Name the runs and the kinds of lines below the axes. Names are put in once the legend stands: it would leave out
    one that begins with _, and take dollar signs for a formula."""
    from matplotlib.lines import Line2D

    fitted = [fit_text(name, width=220) for name in names]
    handles = [Line2D([], [], **_choose_line_style(number)) for number in range(len(names))]
    line_kinds = {
        "validation": Line2D([], [], color="0.3", linewidth=1.8),
        "training": Line2D([], [], color="0.3", linewidth=1, linestyle=":"),
        "lowest validation loss": Line2D(
            [], [], linestyle="", marker="o", markersize=12, markerfacecolor="none", markeredgecolor="0.3"
        ),
    }
    labels = [*map(str, range(len(names))), *line_kinds]
    legend = figure.legend([*handles, *line_kinds.values()], labels, loc="outside lower center", ncols=3)
    for text, name in zip(legend.get_texts(), fitted, strict=False):
        text.set(text=name.text, family=list(name.families), parse_math=False, usetex=False)
