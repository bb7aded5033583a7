"""How evaluations look."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console

from ftcli.console.tables import make_visible, print_skipped, print_table
from ftcli.results import ClassRow, Evaluation, Example, Scaling, Threshold

_MOST_CLASSES = 12
_BESIDE_NAMES = 78  # columns that all figures of a class take
_POOR = 0.02  # a calibration error that is surely above this is worth a temperature

_NAMES = {
    "top_5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "expected_calibration_error": "calibration error",
}


def print_evaluation(console: Console, result: Evaluation) -> None:
    """Figures first, then classes, what is confused, images, thresholds, and what to type next."""
    console.print(f"{result.checkpoint} on {result.split}:", soft_wrap=True)
    seen = f", each seen in {result.views} views" if result.views > 1 else ""
    console.print(
        f"accuracy {result.accuracy:.1%}, loss {result.loss:.4f}, {result.images:,} images{seen}", soft_wrap=True
    )
    rows = [(_NAMES.get(f.name, f.name), _show(f.value), _span(f.low, f.high)) for f in result.figures]
    print_table(console, ("figure", ">value", ">95 %"), rows)
    console.print()
    _print_classes(console, result.per_class)
    _print_confusion(console, result)
    _print_examples(console, "most confident mistakes", result.worst)
    _print_examples(console, "least confident hits", result.unsure)
    _print_thresholds(console, result)
    _print_calibration(console, result)
    print_skipped(console, result.skipped)
    for name, path in (("predictions", result.predictions), ("report", result.report)):
        if path is not None:
            console.print(f"{name}: {path}", soft_wrap=True)
    for command in _advise(result):
        console.print(f"next: {command}", soft_wrap=True)


def _print_classes(console: Console, rows: Sequence[ClassRow]) -> None:
    """Precision, recall and F1 of each class; where there is room, how sure the recall is, and the curves' figures."""
    columns: tuple[str, ...] = ("class", ">images", ">precision", ">recall", ">F1")
    cells = [(r.name, f"{r.images:,}", f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}") for r in rows]
    if console.width < max(cell_len(make_visible(row.name)) for row in rows) + _BESIDE_NAMES:
        print_table(console, columns, cells)
        return
    columns += (">recall, 95 %", ">ROC AUC", ">average precision")
    more = [(_span(r.recall_low, r.recall_high), _show(r.roc_auc), _show(r.average_precision)) for r in rows]
    print_table(console, columns, [(*one, *other) for one, other in zip(cells, more, strict=True)])


def _print_confusion(console: Console, result: Evaluation) -> None:
    """The matrix, where it can be read, and the pairs of classes that are confused most."""
    if len(result.classes) <= _MOST_CLASSES and _measure_matrix(result) <= console.width:
        console.print("\nconfusion (rows are the true class, columns the one given):")
        header = ("", *(f">{name}" for name in result.classes))
        counts = zip(result.classes, result.confusion, strict=True)
        print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.confused:
        console.print("\nmost confused:")
        pairs = [(c.label, c.predicted, f"{c.images:,}", f"{c.share:.1%}") for c in result.confused]
        print_table(console, ("true class", "given", ">images", ">of the class"), pairs)


def _measure_matrix(result: Evaluation) -> int:
    """The columns that the matrix takes on a terminal."""
    widest = len(str(max(map(max, result.confusion))))
    names = [cell_len(make_visible(name)) for name in result.classes]
    return max(names) + 2 + sum(max(width, widest) + 2 for width in names)


def _print_examples(console: Console, title: str, examples: Iterable[Example]) -> None:
    if rows := [(one.path, one.label, one.predicted, f"{one.probability:.3f}") for one in examples]:
        console.print(f"\n{title}:")
        print_table(console, ("image", "true class", "given", ">probability"), rows)


def _print_thresholds(console: Console, result: Evaluation) -> None:
    if not result.thresholds:
        return
    split = result.thresholds[0].chosen_on
    console.print(f"\nthresholds, chosen on {split} and measured on {result.split}:", soft_wrap=True)
    rows = [
        (t.positive, _tell_goal(t), f"{t.threshold:.4f}", f"{t.precision:.3f}", f"{t.recall:.3f}", f"{t.f1:.3f}")
        for t in result.thresholds
    ]
    print_table(console, ("class", "best", ">from", ">precision", ">recall", ">F1"), rows)
    if split == result.split:
        console.print("They were chosen on the very images that they are measured on, so other images will do worse.")


def _tell_goal(threshold: Threshold) -> str:
    return "F1" if threshold.goal == "f1" else f"precision at recall {threshold.wanted:g}"


def _print_calibration(console: Console, result: Evaluation) -> None:
    sure = result.calibration["mean_confidence"]
    judged = result.judge_confidence()
    verdict = "no difference beyond chance" if judged == "fair" else f"it is {judged}"
    console.print(
        f"\nOn average it holds its answers {sure:.1%} probable, and {result.accuracy:.1%} of them are right: "
        f"{verdict}.",
        soft_wrap=True,
    )
    if result.scaling is not None:
        console.print(_tell_scaling(result.scaling), soft_wrap=True)


def _tell_scaling(scaling: Scaling) -> str:
    return (
        f"Temperature {scaling.temperature:.4f}, fitted on the {scaling.images:,} images of {scaling.split}: their log "
        f"loss goes from {scaling.log_loss_before:.4f} to {scaling.log_loss_after:.4f}, their calibration error from "
        f"{scaling.error_before:.3f} to {scaling.error_after:.3f}."
    )


def _advise(result: Evaluation) -> list[str]:
    """The commands to type next."""
    command = f"ftcli evaluate {shlex.quote(str(result.checkpoint))}"
    error = result.find("expected_calibration_error")
    advice = []
    if result.scaling is None and error is not None and error.low is not None and error.low > _POOR:
        advice.append(f"{command} --calibrate")
    if result.report is None:
        advice.append(f"{command} --report report.html")
    return advice


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
