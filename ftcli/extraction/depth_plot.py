"""The plot of a probe's accuracy by the depth of its layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftcli.files import atomic_write
from ftcli.plotting import (
    BLUE,
    GREEN,
    ORANGE,
    FittedText,
    create_figure,
    describe_missing_characters,
    fit_text,
    render_png,
)
from ftcli.results import FeatureLayer, ProbeScore, format_count

logger = logging.getLogger(__name__)

_MAX_LABELLED_LAYERS = 24
"""With more layers only some have their names on the axis."""
_LABEL_WIDTH = 170.0  # points


def plot_depth(scores: Sequence[ProbeScore], layers: Sequence[FeatureLayer], path: Path, title: str) -> None:
    """Write a PNG of a probe's accuracy on test, with its 95% interval, and in cross-validation, for each layer.

    Raises RunError if it cannot be written.
    """
    figure = create_figure(min(15.0, max(8.0, 2 + 0.42 * len(layers))), 6.5, layout="constrained")
    ax = figure.subplots()
    _plot_accuracies(ax, scores)
    fitted_texts = [*_label_layers(ax, layers), *_write_title(ax, scores, title, 72 * figure.get_figwidth() - 90)]
    ax.set_ylabel("accuracy")
    ax.grid(alpha=0.3, axis="y")
    ax.margins(x=0.03)
    figure.legend(loc="outside lower center", ncols=2)
    if missing_glyphs := describe_missing_characters(fitted_texts):
        logger.warning(f"{path}: {missing_glyphs}")
    atomic_write(path, render_png(figure))


def _plot_accuracies(ax: Any, scores: Sequence[ProbeScore]) -> None:
    best_index = max(range(len(scores)), key=lambda index: scores[index].cv_accuracy)  # the first of equals
    cv_label = f"{scores[0].folds}-fold cross-validation in train"
    accuracies = [score.cv_accuracy for score in scores]
    ax.plot(range(len(scores)), accuracies, "-", color=ORANGE, linewidth=1, label=cv_label)
    test_scores = [(index, score) for index, score in enumerate(scores) if score.test_accuracy is not None]
    if test_scores:
        indices = [index for index, _ in test_scores]
        test_accuracies = [score.test_accuracy or 0.0 for _, score in test_scores]
        errors_below = [(score.test_accuracy or 0.0) - (score.test_low or 0.0) for _, score in test_scores]
        errors_above = [(score.test_high or 0.0) - (score.test_accuracy or 0.0) for _, score in test_scores]
        ax.errorbar(
            indices, test_accuracies, (errors_below, errors_above), fmt="o-", color=BLUE, capsize=3, markersize=5,
            label="test, with 95% interval",
        )  # fmt: skip
        accuracies = test_accuracies
    majority_accuracy = scores[0].test_majority
    if majority_accuracy is not None:
        ax.axhline(
            majority_accuracy,
            color="0.4",
            linestyle=":",
            label=f"always the most frequent class: {majority_accuracy:.3f}",
        )
    ax.plot(
        best_index, accuracies[best_index], "o", markersize=13, markerfacecolor="none", markeredgecolor=GREEN,
        markeredgewidth=2,
        label=f"best in cross-validation: {accuracies[best_index]:.3f}{' on test' if test_scores else ''}",
    )  # fmt: skip


def _label_layers(ax: Any, layers: Sequence[FeatureLayer]) -> list[FittedText]:
    """Label the layers with their names and depths, or every n-th of many."""
    step = -(-len(layers) // _MAX_LABELLED_LAYERS)
    indices = [index for index in range(len(layers)) if (len(layers) - 1 - index) % step == 0]  # includes the last
    fitted_texts = [
        fit_text(f"{layers[index].name}  {layers[index].depth:.0%}", width=_LABEL_WIDTH) for index in indices
    ]
    ax.set_xticks(
        indices, [text.text for text in fitted_texts], rotation=50, rotation_mode="anchor", ha="right", va="top"
    )
    for label, text in zip(ax.get_xticklabels(), fitted_texts, strict=True):
        label.set(**text.options)
    ax.set_xlabel("layer, with its depth as a fraction of the network's multiply-adds")
    return fitted_texts


def _write_title(ax: Any, scores: Sequence[ProbeScore], title: str, width: float) -> list[FittedText]:
    test_description = format_count(scores[0].test_images, "test image") if scores[0].test_images else "no test images"
    lines = [fit_text(title, 12, width), fit_text(f"probe: {scores[0].name}, {test_description}", 10, width)]
    for line, size, height in zip(lines, (12, 10), (20, 6), strict=True):
        ax.annotate(
            line.text, (0, 1), xycoords="axes fraction", xytext=(0, height), textcoords="offset points", size=size,
            **line.options,
        )  # fmt: skip
    return lines
