"""Plots of the losses and accuracies of one run, and of several runs on common axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from ftcli.plotting import BLUE, ORANGE, PALETTE, create_figure, fit_text, render_png
from ftcli.results import EpochMetrics

_MARKERS = "osD^vPX*<>hd"
_LINE_STYLES = ("-", "--", "-.")


def render_curves(history: Sequence[EpochMetrics]) -> bytes:
    """Return a PNG with the losses above the accuracies, one stage after another, each labelled at its start.

    Epoch 0 of a stage, the validation before its first step, has no training metrics.
    """
    figure = create_figure(8, 6, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    label_stages(axes[0], plot_curves(axes, history))
    axes[0].legend()
    return render_png(figure)


def plot_curves(axes: Sequence[Any], history: Sequence[EpochMetrics]) -> list[tuple[int, str]]:
    """Plot the losses on the first axis and the accuracies on the second.

    Returns the x position at which each stage starts, with its name.
    """
    stages = split_by_stage(history)
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for split, color in (("train", BLUE), ("val", ORANGE)):
            for start, stage_history in stages:
                points = metric_points(start, stage_history, f"{split}_{metric}")
                label = {"train": "training", "val": "validation"}[split] if start == 0 else None
                axis.plot(*points, "o-", color=color, label=label, markersize=4)
    style_axes(axes, [start for start, _ in stages])
    return [(start, stage_history[0].stage) for start, stage_history in stages]


def split_by_stage(history: Sequence[EpochMetrics]) -> list[tuple[int, Sequence[EpochMetrics]]]:
    """Return the epochs of each stage, with the x position of its epoch 0: that of the last epoch before it."""
    starts = [i for i, metrics in enumerate(history) if i == 0 or metrics.stage != history[i - 1].stage]
    ends = [*starts[1:], len(history)]
    return [(start - number, history[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def metric_points(start: int, stage_history: Sequence[EpochMetrics], metric: str) -> tuple[list[int], list[float]]:
    """Return the x positions and values of a metric, such as val_loss, in the epochs that have it."""
    values = [getattr(metrics, metric) for metrics in stage_history]
    points = [(start + epoch, value) for epoch, value in enumerate(values) if value is not None]
    return [x for x, _ in points], [value for _, value in points]


def style_axes(axes: Sequence[Any], stage_starts: Iterable[int]) -> None:
    """Label the axes of losses and accuracies, and draw a line where a stage after the first starts."""
    from matplotlib.ticker import MaxNLocator

    for axis, label in zip(axes, ("cross-entropy (nats)", "accuracy"), strict=True):
        for start in stage_starts:
            if start > 0:
                axis.axvline(start, color="0.6", linewidth=1, linestyle=":", zorder=0)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))


def label_stages(axis: Any, stages: Iterable[tuple[int, str]]) -> None:
    """Write the names of stages above an axis, at the x positions where they start."""
    for start, name in stages:
        fitted = fit_text(name, width=150)
        axis.annotate(
            fitted.text, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", size=10, **fitted.options,
        )  # fmt: skip


def plot_comparison(names: Sequence[str], histories: Sequence[Sequence[EpochMetrics]]) -> bytes:
    """Return a PNG with the losses of all runs above their accuracies.

    Each run has a colour and a marker; validation is a thick line, training a thin dotted one. A ring marks the epoch
    with the lowest validation loss.
    """
    figure = create_figure(9, 7, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for run_index, history in enumerate(histories):
        _plot_run(axes, history, _choose_line_style(run_index))
    stages_by_start: dict[int, list[str]] = {}
    for start, stage_history in chain.from_iterable(map(split_by_stage, histories)):
        if stage_history[0].stage not in (stage_names := stages_by_start.setdefault(start, [])):
            stage_names.append(stage_history[0].stage)
    style_axes(axes, stages_by_start)
    label_stages(axes[0], [(start, ", ".join(stage_names)) for start, stage_names in stages_by_start.items()])
    _add_legend(figure, names)
    return render_png(figure)


def _choose_line_style(run_index: int) -> dict[str, Any]:
    """Return the style of a run's lines; those of the first 24 runs differ."""
    return {
        "color": PALETTE[run_index % len(PALETTE)],
        "marker": _MARKERS[run_index % len(_MARKERS)],
        "linestyle": _LINE_STYLES[run_index // len(PALETTE) % len(_LINE_STYLES)],
        "markersize": 5,
    }


def _plot_run(axes: Sequence[Any], history: Sequence[EpochMetrics], line_style: dict[str, Any]) -> None:
    best = min(history, key=lambda metrics: metrics.val_loss)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for start, stage_history in split_by_stage(history):
            train_style = line_style | {"linestyle": ":", "linewidth": 1, "markersize": 2.5, "alpha": 0.8}
            axis.plot(*metric_points(start, stage_history, f"train_{name}"), **train_style)
            axis.plot(*metric_points(start, stage_history, f"val_{name}"), **line_style, linewidth=1.8)
            if any(metrics is best for metrics in stage_history):
                point = start + best.epoch, getattr(best, f"val_{name}")
                axis.plot(*point, "o", markersize=12, markerfacecolor="none", markeredgecolor=line_style["color"])


def _add_legend(figure: Any, names: Sequence[str]) -> None:
    """Add a legend of runs and kinds of lines below the axes.

    The names are set after the legend is built: it would omit names that begin with _ and parse dollar signs as math.
    """
    from matplotlib.lines import Line2D

    fitted = [fit_text(name, width=220) for name in names]
    handles = [Line2D([], [], **_choose_line_style(run_index)) for run_index in range(len(names))]
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
