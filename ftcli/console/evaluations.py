"""Tables of `ftcli evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console

from ftcli.console.tables import cell_width, print_skipped, print_table
from ftcli.results import (
    METRIC_INFO,
    ClassMetrics,
    EvaluatedImage,
    EvaluateResult,
    Threshold,
    describe_confidence,
    describe_temperature_scaling,
    format_count,
    format_percent,
)

_MAX_MATRIX_CLASSES = 12
_METRIC_COLUMNS_WIDTH = 86
"""Terminal columns of all metrics of a class, without its name."""
_HIGH_CALIBRATION_ERROR = 0.02
"""Calibration is suggested if the interval of the calibration error lies above this."""


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Print metrics, classes, confusion matrix, images, thresholds, calibration and suggested commands."""
    console.print(f"{result.checkpoint} on {result.split}:", soft_wrap=True)
    tta = f", averaged over {result.views} views of each image" if result.views > 1 else ""
    console.print(
        f"accuracy {format_percent(result.accuracy)}, loss {result.loss:.4f}, "
        f"{format_count(result.images, 'image')}{tta}",
        soft_wrap=True,
    )
    rows = [
        (METRIC_INFO[metric.name].label, _format_value(metric.value), _format_interval(metric.low, metric.high))
        for metric in result.figures
    ]
    print_table(console, ("metric", ">value", ">95% interval"), rows)
    console.print()
    _print_class_metrics(console, result.per_class)
    _print_confusion_matrix(console, result)
    _print_examples(console, "errors with the highest confidence", result.worst)
    _print_examples(console, "correct images with the lowest confidence", result.unsure)
    _print_thresholds(console, result)
    _print_calibration(console, result)
    print_skipped(console, result.skipped)
    for name, path in (("predictions", result.predictions), ("report", result.report)):
        if path is not None:
            console.print(f"{name}: {path}", soft_wrap=True)
    for command in _suggest_commands(result):
        console.print(f"next: {command}", soft_wrap=True)


def _print_class_metrics(console: Console, classes: Sequence[ClassMetrics]) -> None:
    """Print precision, recall and F1 of each class; on a wide console also the recall interval, ROC AUC and AP."""
    columns: tuple[str, ...] = ("class", ">support", ">precision", ">recall", ">F1")
    rows = [(c.name, f"{c.images:,}", f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}") for c in classes]
    if console.width < max(cell_width(c.name) for c in classes) + _METRIC_COLUMNS_WIDTH:
        print_table(console, columns, rows)
        return
    columns += (">95% interval of recall", ">ROC AUC", ">average precision")
    more_cells = [
        (_format_interval(c.recall_low, c.recall_high), _format_value(c.roc_auc), _format_value(c.average_precision))
        for c in classes
    ]
    print_table(console, columns, [(*row, *cells) for row, cells in zip(rows, more_cells, strict=True)])


def _print_confusion_matrix(console: Console, result: EvaluateResult) -> None:
    """Print the confusion matrix if it fits, and the most frequent pairs of true and predicted class."""
    if len(result.classes) <= _MAX_MATRIX_CLASSES and _compute_matrix_width(result) <= console.width:
        console.print("\nconfusion matrix (rows: true class, columns: predicted):")
        header = ("", *(f">{name}" for name in result.classes))
        counts = zip(result.classes, result.confusion, strict=True)
        print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.confused:
        console.print("\nmost frequent errors:")
        rows = [
            (pair.label, pair.predicted, f"{pair.images:,}", format_percent(pair.share)) for pair in result.confused
        ]
        print_table(console, ("true class", "predicted class", ">images", ">of true class"), rows)


def _compute_matrix_width(result: EvaluateResult) -> int:
    """Return the terminal columns that the confusion matrix takes."""
    count_width = len(str(max(map(max, result.confusion))))
    name_widths = [cell_width(name) for name in result.classes]
    return max(name_widths) + 2 + sum(max(width, count_width) + 2 for width in name_widths)


def _print_examples(console: Console, title: str, images: Iterable[EvaluatedImage]) -> None:
    if rows := [(image.path, image.label, image.predicted, f"{image.probability:.3f}") for image in images]:
        console.print(f"\n{title}:")
        print_table(console, ("image", "true class", "predicted class", ">probability"), rows)


def _print_thresholds(console: Console, result: EvaluateResult) -> None:
    if not result.thresholds:
        return
    split = result.thresholds[0].chosen_on
    console.print(f"\nthresholds, chosen on {split} and measured on {result.split}:", soft_wrap=True)
    rows = [
        (t.positive, _format_goal(t), f"{t.threshold:.4f}", f"{t.precision:.3f}", f"{t.recall:.3f}", f"{t.f1:.3f}")
        for t in result.thresholds
    ]
    print_table(console, ("class", "best", ">threshold", ">precision", ">recall", ">F1"), rows)
    if split == result.split:
        console.print("They are measured on the images that they were chosen on; expect worse on other images.")


def _format_goal(threshold: Threshold) -> str:
    return "F1" if threshold.goal == "f1" else f"precision at recall {threshold.wanted:g}"


def _print_calibration(console: Console, result: EvaluateResult) -> None:
    console.print(f"\n{describe_confidence(result)}", soft_wrap=True)
    if result.scaling is not None:
        console.print(describe_temperature_scaling(result.scaling), soft_wrap=True)


def _suggest_commands(result: EvaluateResult) -> list[str]:
    command = f"ftcli evaluate {shlex.quote(str(result.checkpoint))}"
    error = result.find_metric("expected_calibration_error")
    commands = []
    if result.scaling is None and error is not None and error.low is not None and error.low > _HIGH_CALIBRATION_ERROR:
        commands.append(f"{command} --calibrate")
    if result.report is None:
        commands.append(f"{command} --report report.html")
    return commands


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _format_interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
