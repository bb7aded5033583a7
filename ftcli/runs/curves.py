"""The picture of a run: losses and accuracies over its epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence

from ftcli.results import EpochRow


def draw_curves(rows: Sequence[EpochRow]) -> bytes:
    """A PNG with the loss above and the accuracy below; stages follow one another and are named at the top.

    Epoch 0 of a stage, the measurement before its first step, has a validation point and no training point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawn between epochs
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from ftcli.drawing import fit_text  # which loads matplotlib too

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    starts = [i for i, row in enumerate(rows) if i == 0 or row.stage != rows[i - 1].stage]
    offsets = [i - starts.index(max(s for s in starts if s <= i)) for i in range(len(rows))]
    for axis, name, label in ((axes[0], "loss", "cross-entropy (nats)"), (axes[1], "accuracy", "accuracy")):
        for kind, colour in (("train", "#0072B2"), ("val", "#D55E00")):
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                points = [
                    (offsets[i], value)
                    for i in range(start, end)
                    if (value := getattr(rows[i], f"{kind}_{name}")) is not None
                ]
                shown = {"train": "training", "val": "validation"}[kind] if start == 0 else None
                axis.plot(
                    *zip(*points, strict=True) if points else ((), ()), "o-", color=colour, label=shown, markersize=4
                )
        for start in starts[1:]:
            axis.axvline(offsets[start], color="0.6", linewidth=1, linestyle=":")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    for start in starts:
        stage = fit_text(rows[start].stage, width=150)
        axes[0].annotate(
            stage.text, (offsets[start], 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", size=10, **stage.options,
        )  # fmt: skip
    axes[0].legend()
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()
