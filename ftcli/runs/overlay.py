"""The picture of several runs: their losses and accuracies over the epochs, laid over one another."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ftcli.results import EpochRow
from ftcli.runs.curves import dress_axes, list_points, name_stages, split_stages

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Those of Okabe and Ito, which people who do not tell red from green tell apart; grey is in place of their yellow,
which is too pale for a line."""
_MARKERS = "osD^vPX*<>hd"
_DASHES = ("-", "--", "-.")


def draw_overlay(names: Sequence[str], runs: Sequence[Sequence[EpochRow]]) -> bytes:
    """A PNG with the losses above and the accuracies below, where a run has a colour and a marker: validation in a
    strong line, training in a thin dotted one. A ring is around the epoch of the lowest validation loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    for number, rows in enumerate(runs):
        _plot_run(axes, rows, _choose_look(number))
    stages: dict[int, list[str]] = {}
    for begin, part in chain.from_iterable(map(split_stages, runs)):
        if part[0].stage not in (there := stages.setdefault(begin, [])):
            there.append(part[0].stage)
    dress_axes(axes, stages)
    name_stages(axes[0], [(begin, ", ".join(there)) for begin, there in stages.items()])
    _put_legend(figure, names)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _choose_look(number: int) -> dict[str, Any]:
    """How the lines of a run look; no two of the first 24 look the same."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        "markersize": 5,
    }


def _plot_run(axes: Sequence[Any], rows: Sequence[EpochRow], look: dict[str, Any]) -> None:
    best = min(rows, key=lambda row: row.val_loss)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for begin, part in split_stages(rows):
            faint = look | {"linestyle": ":", "linewidth": 1, "markersize": 2.5, "alpha": 0.8}
            axis.plot(*list_points(begin, part, f"train_{name}"), **faint)
            axis.plot(*list_points(begin, part, f"val_{name}"), **look, linewidth=1.8)
            if any(row is best for row in part):
                place = begin + best.epoch, getattr(best, f"val_{name}")
                axis.plot(*place, "o", markersize=12, markerfacecolor="none", markeredgecolor=look["color"])


def _put_legend(figure: Any, names: Sequence[str]) -> None:
    """Name the runs and the kinds of lines below the axes. Names are put in once the legend stands: it would leave out
    one that begins with _, and take dollar signs for a formula."""
    from matplotlib.lines import Line2D

    from ftcli.drawing import fit_text  # which loads matplotlib too

    fitted = [fit_text(name, width=220) for name in names]
    handles = [Line2D([], [], **_choose_look(number)) for number in range(len(names))]
    kinds = {
        "validation": Line2D([], [], color="0.3", linewidth=1.8),
        "training": Line2D([], [], color="0.3", linewidth=1, linestyle=":"),
        "lowest validation loss": Line2D(
            [], [], linestyle="", marker="o", markersize=12, markerfacecolor="none", markeredgecolor="0.3"
        ),
    }
    labels = [*map(str, range(len(names))), *kinds]
    legend = figure.legend([*handles, *kinds.values()], labels, loc="outside lower center", ncols=3)
    for text, name in zip(legend.get_texts(), fitted, strict=False):
        text.set(text=name.text, family=list(name.families), parse_math=False, usetex=False)
