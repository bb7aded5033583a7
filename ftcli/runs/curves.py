"""The picture of a run: losses and accuracies over its epochs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from ftcli.results import EpochRow


def draw_curves(rows: Sequence[EpochRow]) -> bytes:
    """A PNG with the loss above and the accuracy below; stages follow one another and are named at the top.

    Epoch 0 of a stage, the measurement before its first step, has a validation point and no training point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawn between epochs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    name_stages(axes[0], plot_curves(axes, rows))
    axes[0].legend()
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def plot_curves(axes: Sequence[Any], rows: Sequence[EpochRow]) -> list[tuple[int, str]]:
    """Draw the loss on the first of two axes and the accuracy on the second.

    Returns the place on the axis of epochs where each stage begins, with its name.
    """
    stages = split_stages(rows)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for kind, colour in (("train", "#0072B2"), ("val", "#D55E00")):
            for begin, part in stages:
                points = list_points(begin, part, f"{kind}_{name}")
                shown = {"train": "training", "val": "validation"}[kind] if begin == 0 else None
                axis.plot(*points, "o-", color=colour, label=shown, markersize=4)
    dress_axes(axes, [begin for begin, _ in stages])
    return [(begin, part[0].stage) for begin, part in stages]


def split_stages(rows: Sequence[EpochRow]) -> list[tuple[int, Sequence[EpochRow]]]:
    """The rows of each stage, with the place of its first on the axis of epochs: where the stage before ended."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row.stage != rows[i - 1].stage]
    ends = [*starts[1:], len(rows)]
    return [(start - number, rows[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def list_points(begin: int, part: Sequence[EpochRow], figure: str) -> tuple[list[int], list[float]]:
    """The epochs and values of a stage's figure, such as val_loss, where it has one; `begin` is the first's place."""
    points = [(begin + n, value) for n, row in enumerate(part) if (value := getattr(row, figure)) is not None]
    return [place for place, _ in points], [value for _, value in points]


def dress_axes(axes: Sequence[Any], begins: Iterable[int]) -> None:
    """Name two axes, of the loss and of the accuracy over the epochs, and mark where stages after the first begin."""
    from matplotlib.ticker import MaxNLocator

    for axis, label in zip(axes, ("cross-entropy (nats)", "accuracy"), strict=True):
        for begin in begins:
            if begin > 0:
                axis.axvline(begin, color="0.6", linewidth=1, linestyle=":", zorder=0)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))


def name_stages(axis: Any, stages: Iterable[tuple[int, str]]) -> None:
    """Write above an axis what begins at places on it."""
    from ftcli.drawing import fit_text  # which loads matplotlib too

    for begin, name in stages:
        stage = fit_text(name, width=150)
        axis.annotate(
            stage.text, (begin, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", size=10, **stage.options,
        )  # fmt: skip
