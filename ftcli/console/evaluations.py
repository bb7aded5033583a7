"""How evaluations look."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console

from ftcli.console.tables import escape_controls, print_skipped, print_table
from ftcli.results import ClassMetrics, EvaluatedImage, EvaluateResult, TemperatureScaling, Threshold

_MAX_MATRIX_CLASSES = 12
_METRIC_COLUMNS_WIDTH = 78  # columns that all figures of a class take
_HIGH_CALIBRATION_ERROR = 0.02  # a calibration error that is surely above this is worth a temperature

_METRIC_NAMES = {
    "top_5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "expected_calibration_error": "calibration error",
}


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Figures first, then classes, what is confused, images, thresholds, and what to type next."""
    console.print(f"{result.checkpoint} on {result.split}:", soft_wrap=True)
    views_note = f", each seen in {result.views} views" if result.views > 1 else ""
    console.print(
        f"accuracy {result.accuracy:.1%}, loss {result.loss:.4f}, {result.images:,} images{views_note}", soft_wrap=True
    )
    rows = [
        (_METRIC_NAMES.get(f.name, f.name), _format_value(f.value), _format_interval(f.low, f.high))
        for f in result.figures
    ]
    print_table(console, ("figure", ">value", ">95 %"), rows)
    console.print()
    _print_class_metrics(console, result.per_class)
    _print_confusion_matrix(console, result)
    _print_examples(console, "most confident mistakes", result.worst)
    _print_examples(console, "least confident hits", result.unsure)
    _print_thresholds(console, result)
    _print_calibration(console, result)
    print_skipped(console, result.skipped)
    for name, path in (("predictions", result.predictions), ("report", result.report)):
        if path is not None:
            console.print(f"{name}: {path}", soft_wrap=True)
    for command in _suggest_commands(result):
        console.print(f"next: {command}", soft_wrap=True)


def _print_class_metrics(console: Console, rows: Sequence[ClassMetrics]) -> None:
    """Precision, recall and F1 of each class; where there is room, how sure the recall is, and the curves' figures."""
    columns: tuple[str, ...] = ("class", ">images", ">precision", ">recall", ">F1")
    cells = [(r.name, f"{r.images:,}", f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}") for r in rows]
    if console.width < max(cell_len(escape_controls(row.name)) for row in rows) + _METRIC_COLUMNS_WIDTH:
        print_table(console, columns, cells)
        return
    columns += (">recall, 95 %", ">ROC AUC", ">average precision")
    interval_cells = [
        (_format_interval(r.recall_low, r.recall_high), _format_value(r.roc_auc), _format_value(r.average_precision))
        for r in rows
    ]
    print_table(console, columns, [(*one, *other) for one, other in zip(cells, interval_cells, strict=True)])


def _print_confusion_matrix(console: Console, result: EvaluateResult) -> None:
    """The matrix, where it can be read, and the pairs of classes that are confused most."""
    if len(result.classes) <= _MAX_MATRIX_CLASSES and _compute_matrix_width(result) <= console.width:
        console.print("\nconfusion (rows are the true class, columns the one given):")
        header = ("", *(f">{name}" for name in result.classes))
        counts = zip(result.classes, result.confusion, strict=True)
        print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.confused:
        console.print("\nmost confused:")
        pairs = [(c.label, c.predicted, f"{c.images:,}", f"{c.share:.1%}") for c in result.confused]
        print_table(console, ("true class", "given", ">images", ">of the class"), pairs)


def _compute_matrix_width(result: EvaluateResult) -> int:
    """The columns that the matrix takes on a terminal."""
    widest = len(str(max(map(max, result.confusion))))
    names = [cell_len(escape_controls(name)) for name in result.classes]
    return max(names) + 2 + sum(max(width, widest) + 2 for width in names)


def _print_examples(console: Console, title: str, images: Iterable[EvaluatedImage]) -> None:
    if rows := [(image.path, image.label, image.predicted, f"{image.probability:.3f}") for image in images]:
        console.print(f"\n{title}:")
        print_table(console, ("image", "true class", "given", ">probability"), rows)


def _print_thresholds(console: Console, result: EvaluateResult) -> None:
    if not result.thresholds:
        return
    split = result.thresholds[0].chosen_on
    console.print(f"\nthresholds, chosen on {split} and measured on {result.split}:", soft_wrap=True)
    rows = [
        (t.positive, _format_goal(t), f"{t.threshold:.4f}", f"{t.precision:.3f}", f"{t.recall:.3f}", f"{t.f1:.3f}")
        for t in result.thresholds
    ]
    print_table(console, ("class", "best", ">from", ">precision", ">recall", ">F1"), rows)
    if split == result.split:
        console.print("They were chosen on the very images that they are measured on, so other images will do worse.")


def _format_goal(threshold: Threshold) -> str:
    return "F1" if threshold.goal == "f1" else f"precision at recall {threshold.wanted:g}"


def _print_calibration(console: Console, result: EvaluateResult) -> None:
    mean_confidence = result.calibration["mean_confidence"]
    confidence_verdict = result.judge_confidence()
    verdict = "no difference beyond chance" if confidence_verdict == "fair" else f"it is {confidence_verdict}"
    console.print(
        f"\nOn average it holds its answers {mean_confidence:.1%} probable, and {result.accuracy:.1%} of them are right: "
        f"{verdict}.",
        soft_wrap=True,
    )
    if result.scaling is not None:
        console.print(_format_temperature_scaling(result.scaling), soft_wrap=True)


def _format_temperature_scaling(scaling: TemperatureScaling) -> str:
    return (
        f"Temperature {scaling.temperature:.4f}, fitted on the {scaling.images:,} images of {scaling.split}: their log "
        f"loss goes from {scaling.log_loss_before:.4f} to {scaling.log_loss_after:.4f}, their calibration error from "
        f"{scaling.error_before:.3f} to {scaling.error_after:.3f}."
    )


def _suggest_commands(result: EvaluateResult) -> list[str]:
    """The commands to type next."""
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
