"""The picture of how well a probe does by depth: which layers carry what tells the classes apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftcli.drawing import FittedText, fit_text, tell_missing
from ftcli.results import FeatureLayer, ProbeScore, Reporter, tell_count
from ftcli.storage import replace_file

_NAMED = 24
"""Up to so many layers have their names below them."""
_NAME_WIDTH = 170.0  # points


def draw_depth(
    scores: Sequence[ProbeScore], layers: Sequence[FeatureLayer], target: Path, title: str, reporter: Reporter
) -> None:
    """Write a PNG: a probe's accuracy on test, with its 95 % bars, and in cross-validation, for each layer from first
    to last; whole or not at all. The layers stand at equal distances, below each its name and its depth.

    Raises RunError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(15.0, max(8.0, 2 + 0.42 * len(layers))), 6.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    _draw_lines(axis, scores)
    words = [*_name_layers(axis, layers), *_write_title(axis, scores, title, 72 * figure.get_figwidth() - 90)]
    axis.set_ylabel("accuracy")
    axis.grid(alpha=0.3, axis="y")
    axis.margins(x=0.03)
    figure.legend(loc="outside lower center", ncols=2)
    if missing := tell_missing(words):
        reporter.warn(f"{target}: {missing}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(target, buffer.getvalue())


def _draw_lines(axis: Any, scores: Sequence[ProbeScore]) -> None:
    best = max(range(len(scores)), key=lambda place: scores[place].cv_accuracy)  # the first of equals
    folds = f"{scores[0].folds}-fold cross-validation in train"
    shown = [score.cv_accuracy for score in scores]
    axis.plot(range(len(scores)), shown, "-", color="#D55E00", linewidth=1, label=folds)
    tested = [(place, score) for place, score in enumerate(scores) if score.test_accuracy is not None]
    if tested:
        places = [place for place, _ in tested]
        values = [score.test_accuracy or 0.0 for _, score in tested]
        below = [(score.test_accuracy or 0.0) - (score.test_low or 0.0) for _, score in tested]
        above = [(score.test_high or 0.0) - (score.test_accuracy or 0.0) for _, score in tested]
        axis.errorbar(
            places, values, (below, above), fmt="o-", color="#0072B2", capsize=3, markersize=5,
            label="test, with 95 % interval",
        )  # fmt: skip
        shown = values
    majority = scores[0].test_majority
    if majority is not None:
        axis.axhline(majority, color="0.4", linestyle=":", label=f"always the commonest class of train: {majority:.3f}")
    axis.plot(
        best, shown[best], "o", markersize=13, markerfacecolor="none", markeredgecolor="#009E73", markeredgewidth=2,
        label=f"best in cross-validation: {shown[best]:.3f}{' on test' if tested else ''}",
    )  # fmt: skip


def _name_layers(axis: Any, layers: Sequence[FeatureLayer]) -> list[FittedText]:
    """Below each layer its name and the share of the computation that is done there; below some where they are many."""
    step = -(-len(layers) // _NAMED)
    places = [place for place in range(len(layers)) if (len(layers) - 1 - place) % step == 0]  # the last among them
    words = [fit_text(f"{layers[place].name}  {layers[place].depth:.0%}", width=_NAME_WIDTH) for place in places]
    axis.set_xticks(places, [word.text for word in words], rotation=50, rotation_mode="anchor", ha="right", va="top")
    for label, word in zip(axis.get_xticklabels(), words, strict=True):
        label.set(**word.options)
    axis.set_xlabel("layer, and the share of the network's multiply-adds up to it")
    return words


def _write_title(axis: Any, scores: Sequence[ProbeScore], title: str, width: float) -> list[FittedText]:
    tests = tell_count(scores[0].test_images, "test image") if scores[0].test_images else "no test images"
    lines = [fit_text(title, 12, width), fit_text(f"probe: {scores[0].name}, {tests}", 10, width)]
    for line, size, height in zip(lines, (12, 10), (20, 6), strict=True):
        axis.annotate(
            line.text, (0, 1), xycoords="axes fraction", xytext=(0, height), textcoords="offset points", size=size,
            **line.options,
        )  # fmt: skip
    return lines
