"""The plots of a report: how far probabilities can be trusted, who is taken for whom, how training went."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ftcli.analysis.report.sentences import quote_text, show_share, show_text
from ftcli.analysis.report.svg import draw_svg
from ftcli.results import EpochRow, Evaluation, ReliabilityBin
from ftcli.runs.curves import plot_curves
from ftcli.statistics import wilson

_WIDTH = 360  # on a phone, letters are then hardly reduced
HIT, MISS = (47, 127, 196), (217, 95, 14)
"""The colours of cells, which show on white and on black."""
_LONGEST = 20
_ORDERED = 300  # classes up to which the best order of leaves is looked for, which takes their cube


def draw_reliability(bins: Sequence[ReliabilityBin]) -> Markup:
    """The share that is right against the mean probability of each bin that has images, with 95 % intervals (Wilson),
    above the number of images in each."""
    filled = [(b, b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None]
    confidence = [mean for _, mean, _ in filled]
    accuracy = [share for _, _, share in filled]
    bounds = [wilson(round(share * b.images), b.images) for b, _, share in filled]
    below = [max(0.0, share - low) for share, (low, _) in zip(accuracy, bounds, strict=True)]
    above = [max(0.0, high - share) for share, (_, high) in zip(accuracy, bounds, strict=True)]
    start = min((b.low for b, _, _ in filled), default=0.0)

    def draw(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], ":", color="#999999", label="perfectly calibrated")
        upper.errorbar(
            confidence, accuracy, yerr=(below, above), fmt="o-", color="#0072B2", markersize=4, capsize=2,
            label="this classifier (95 %)",
        )  # fmt: skip
        upper.set(ylim=(0, 1.02), ylabel="share that is right")
        upper.grid(alpha=0.6)
        figure.legend(loc="outside upper left", ncols=2)
        lower.bar(
            [b.low for b in bins], [b.images for b in bins], [b.high - b.low for b in bins], align="edge",
            color="#0072B2", edgecolor="none",
        )  # fmt: skip
        lower.set(xlim=(start, 1.005), xlabel="probability given to the answer", ylabel="images")

    told = "; ".join(
        f"{b.images} images held {show_share(mean)} probable, {show_share(share)} of them right"
        for b, mean, share in filled
    )
    return draw_svg("reliability", (_WIDTH, 340), "Probabilities given, and the shares that are right", told, draw)


def draw_progress(rows: Sequence[EpochRow]) -> Markup:
    """Loss and accuracy over the epochs of a run; at least one row."""
    words = [
        f"stage {quote_text(row.stage)}, epoch {row.epoch}: validation loss {row.val_loss:.4f}, "
        f"accuracy {show_share(row.val_accuracy)}"
        for row in (rows[0], rows[-1])
    ]

    def draw(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots(2, 1, sharex=True)
        stages = plot_curves(axes, rows)
        for start, stage in stages:
            axes[0].annotate(
                _shorten(show_text(stage), 14), (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
                textcoords="offset points", parse_math=False,
            )  # fmt: skip
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    told = f"From {words[0]}, to {words[1]}."
    return draw_svg("progress", (_WIDTH, 400), "Loss and accuracy over the epochs of the training", told, draw)


def order_classes(confusion: NDArray[np.int64]) -> list[int]:
    """The classes in an order that puts those beside each other that are taken for each other: the leaves of a
    hierarchical clustering by the mean share of mutual confusion."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import
    from scipy.spatial.distance import squareform

    count = len(confusion)
    if count < 3:
        return list(range(count))
    shares = share_rows(confusion)
    mutual = shares + shares.T
    distance = 2.0 - mutual
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=count <= _ORDERED)
    return [int(leaf) for leaf in leaves_list(tree)]


def share_rows(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each count as a share of its row; 0 where the row has none."""
    shares: NDArray[np.float64] = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return shares


def draw_matrix(evaluation: Evaluation) -> Markup:
    """The confusion matrix of many classes: a row for each true class, a column for each given one, ordered by
    `order_classes`, and the opacity of a cell the square root of its share of the row."""
    confusion = np.asarray(evaluation.confusion, dtype=np.int64)
    order = order_classes(confusion)
    shares = share_rows(confusion)[np.ix_(order, order)]
    names = [_shorten(show_text(evaluation.classes[i]), _LONGEST) for i in order]
    cell = 14 if len(names) <= 150 else 11
    side, margin = cell * len(names), 24 + 6.2 * max(map(_count_columns, names))
    size = (margin + side + 8, margin + side + 8)
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = MISS
    pixels[np.diag_indices(len(names))] = (*HIT, 0)
    pixels[..., 3] = np.round(255 * np.sqrt(shares))

    def draw(figure: Any) -> None:
        axes = figure.add_axes((margin / size[0], 8 / size[1], side / size[0], side / size[1]))
        axes.imshow(pixels, interpolation="none", aspect="auto")
        places = range(len(names))
        axes.set_xticks(places, names, rotation=90, fontsize=cell - 4, parse_math=False)
        axes.set_yticks(places, names, fontsize=cell - 4, parse_math=False)
        axes.tick_params(top=False, bottom=False, left=False, labeltop=True, labelbottom=False, pad=2)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#b0b0b0")

    told = (
        f"{len(names)} true classes as rows and {len(names)} given classes as columns; "
        f"{int(np.trace(confusion))} of {int(confusion.sum())} images lie on the diagonal, which is right."
    )
    return draw_svg("matrix", size, "Confusion matrix", told, draw)


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _count_columns(text: str) -> int:
    """How wide a text is in letters; those of East Asia count twice."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
