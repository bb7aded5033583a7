"""The picture of a run: losses and accuracies over its epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ftcli.plotting import BLUE, ORANGE, create_figure, fit_text, render_png
from ftcli.results import EpochMetrics


def render_curves(history: Sequence[EpochMetrics]) -> bytes:
    """A PNG with the loss above and the accuracy below; stages follow one another and are named at the top.

    Epoch 0 of a stage, the measurement before its first step, has a validation point and no training point.
    """
    figure = create_figure(8, 6, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    label_stages(axes[0], plot_curves(axes, history))
    axes[0].legend()
    return render_png(figure)


def plot_curves(axes: Sequence[Any], history: Sequence[EpochMetrics]) -> list[tuple[int, str]]:
    """Draw the loss on the first of two axes and the accuracy on the second.

    Returns the place on the axis of epochs where each stage begins, with its name.
    """
    stages = split_by_stage(history)
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for split, colour in (("train", BLUE), ("val", ORANGE)):
            for start, stage_history in stages:
                points = metric_points(start, stage_history, f"{split}_{metric}")
                label = {"train": "training", "val": "validation"}[split] if start == 0 else None
                axis.plot(*points, "o-", color=colour, label=label, markersize=4)
    style_axes(axes, [start for start, _ in stages])
    return [(start, stage_history[0].stage) for start, stage_history in stages]


def split_by_stage(history: Sequence[EpochMetrics]) -> list[tuple[int, Sequence[EpochMetrics]]]:
    """The rows of each stage, with the place of its first on the axis of epochs: where the stage before ended."""
    starts = [i for i, row in enumerate(history) if i == 0 or row.stage != history[i - 1].stage]
    ends = [*starts[1:], len(history)]
    return [(start - number, history[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def metric_points(start: int, stage_history: Sequence[EpochMetrics], metric: str) -> tuple[list[int], list[float]]:
    """The epochs and values of a stage's figure, such as val_loss, where it has one; `begin` is the first's place."""
    points = [(start + n, value) for n, row in enumerate(stage_history) if (value := getattr(row, metric)) is not None]
    return [x for x, _ in points], [value for _, value in points]


def style_axes(axes: Sequence[Any], stage_starts: Iterable[int]) -> None:
    """Name two axes, of the loss and of the accuracy over the epochs, and mark where stages after the first begin."""
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
    """Write above an axis what begins at places on it."""
    for start, name in stages:
        fitted = fit_text(name, width=150)
        axis.annotate(
            fitted.text, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", size=10, **fitted.options,
        )  # fmt: skip
