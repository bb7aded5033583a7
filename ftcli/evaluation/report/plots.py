"""Plots of the report: reliability diagram, confusion matrix, training history."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ftcli.evaluation.report.sentences import escape_text, isolate_text
from ftcli.evaluation.report.svg import draw_svg
from ftcli.plotting import BLUE
from ftcli.results import EpochMetrics, EvaluateResult, ReliabilityBin, format_count, format_percent
from ftcli.runs.curves import plot_curves
from ftcli.statistics import wilson_interval

_WIDTH = 360  # pixels, so that text stays legible on a phone
CORRECT_COLOR, ERROR_COLOR = (47, 127, 196), (217, 95, 14)
"""RGB of cells; both contrast with a white and a black page."""
_MAX_LABEL_LENGTH = 20
_MAX_OPTIMAL_ORDERING = 300  # classes; the time of an optimal leaf order is cubic


def plot_reliability(bins: Sequence[ReliabilityBin]) -> Markup:
    """Plot accuracy against mean confidence of the non-empty bins, with 95% Wilson intervals, above image counts."""
    non_empty = [(b, b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None]
    confidence = [bin_confidence for _, bin_confidence, _ in non_empty]
    accuracy = [bin_accuracy for _, _, bin_accuracy in non_empty]
    intervals = [wilson_interval(round(bin_accuracy * b.images), b.images) for b, _, bin_accuracy in non_empty]
    lower_errors = [max(0.0, bin_accuracy - low) for bin_accuracy, (low, _) in zip(accuracy, intervals, strict=True)]
    upper_errors = [max(0.0, high - bin_accuracy) for bin_accuracy, (_, high) in zip(accuracy, intervals, strict=True)]
    start = min((b.low for b, _, _ in non_empty), default=0.0)

    def draw(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        accuracy_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        accuracy_axes.plot([0, 1], [0, 1], ":", color="#999999", label="perfectly calibrated")
        accuracy_axes.errorbar(
            confidence, accuracy, yerr=(lower_errors, upper_errors), fmt="o-", color=BLUE, markersize=4, capsize=2,
            label="this classifier (95% interval)",
        )  # fmt: skip
        accuracy_axes.set(ylim=(0, 1.02), ylabel="accuracy")
        accuracy_axes.grid(alpha=0.6)
        figure.legend(loc="outside upper left", ncols=2)
        count_axes.bar(
            [b.low for b in bins], [b.images for b in bins], [b.high - b.low for b in bins], align="edge",
            color=BLUE, edgecolor="none",
        )  # fmt: skip
        count_axes.set(xlim=(start, 1.005), xlabel="confidence", ylabel="images")

    description = "; ".join(
        f"{format_count(b.images, 'image')} with mean confidence {format_percent(bin_confidence)} and accuracy "
        f"{format_percent(bin_accuracy)}"
        for b, bin_confidence, bin_accuracy in non_empty
    )
    return draw_svg("reliability", (_WIDTH, 340), "Reliability diagram: accuracy by confidence", description, draw)


def plot_history(history: Sequence[EpochMetrics]) -> Markup:
    """Plot loss and accuracy over the epochs of a run, which has at least one."""
    epoch_texts = [
        f"stage {isolate_text(row.stage)}, epoch {row.epoch}: validation loss {row.val_loss:.4f}, "
        f"accuracy {format_percent(row.val_accuracy)}"
        for row in (history[0], history[-1])
    ]

    def draw(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots(2, 1, sharex=True)
        stages = plot_curves(axes, history)
        for start, stage in stages:
            axes[0].annotate(
                _truncate(escape_text(stage), 14), (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
                textcoords="offset points", parse_math=False,
            )  # fmt: skip
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    description = f"From {epoch_texts[0]}, to {epoch_texts[1]}."
    return draw_svg("history", (_WIDTH, 400), "Loss and accuracy per epoch", description, draw)


def order_classes(confusion: NDArray[np.int64]) -> list[int]:
    """Order classes so that confused ones are neighbors: the leaves of an average-linkage clustering by confusion."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import
    from scipy.spatial.distance import squareform

    num_classes = len(confusion)
    if num_classes < 3:
        return list(range(num_classes))
    fractions = normalize_rows(confusion)
    mutual_confusion = fractions + fractions.T
    distance = 2.0 - mutual_confusion
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=num_classes <= _MAX_OPTIMAL_ORDERING)
    return [int(leaf) for leaf in leaves_list(tree)]


def normalize_rows(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide each count by the sum of its row; 0 for an empty row."""
    fractions: NDArray[np.float64] = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return fractions


def plot_confusion_matrix(evaluation: EvaluateResult) -> Markup:
    """Plot the confusion matrix of many classes: rows are true, columns predicted classes, ordered by `order_classes`.

    The opacity of a cell is the square root of its fraction of the row.
    """
    confusion = np.asarray(evaluation.confusion, dtype=np.int64)
    order = order_classes(confusion)
    fractions = normalize_rows(confusion)[np.ix_(order, order)]
    names = [_truncate(escape_text(evaluation.classes[i]), _MAX_LABEL_LENGTH) for i in order]
    cell_size = 14 if len(names) <= 150 else 11
    matrix_size, margin = cell_size * len(names), 24 + 6.2 * max(map(_text_width, names))
    figure_size = (margin + matrix_size + 8, margin + matrix_size + 8)
    pixels = np.zeros((*fractions.shape, 4), dtype=np.uint8)
    pixels[..., :3] = ERROR_COLOR
    pixels[np.diag_indices(len(names))] = (*CORRECT_COLOR, 0)
    pixels[..., 3] = np.round(255 * np.sqrt(fractions))

    def draw(figure: Any) -> None:
        axes = figure.add_axes(
            (margin / figure_size[0], 8 / figure_size[1], matrix_size / figure_size[0], matrix_size / figure_size[1])
        )
        axes.imshow(pixels, interpolation="none", aspect="auto")
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=cell_size - 4, parse_math=False)
        axes.set_yticks(ticks, names, fontsize=cell_size - 4, parse_math=False)
        axes.tick_params(top=False, bottom=False, left=False, labeltop=True, labelbottom=False, pad=2)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#b0b0b0")

    description = (
        f"{len(names)} true classes as rows and {len(names)} predicted classes as columns; "
        f"{int(np.trace(confusion))} of {int(confusion.sum())} images are correct, on the diagonal."
    )
    return draw_svg("matrix", figure_size, "Confusion matrix", description, draw)


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _text_width(text: str) -> int:
    """Return the width of a text in letters; East Asian wide ones count twice."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
