"""The plot of a run: losses and accuracies over its epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ftcli.plotting import BLUE, ORANGE, create_figure, fit_text, render_png
from ftcli.results import EpochMetrics


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
