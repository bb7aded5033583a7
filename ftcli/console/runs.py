"""How trainings and evaluations look."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ftcli.console.tables import print_table
from ftcli.results import Evaluation, TrainResult


def print_training(console: Console, result: TrainResult) -> None:
    rows = [
        (
            stage.name,
            str(stage.epochs),
            f"{stage.trainable_parameters:,}",
            f"{stage.start_val_loss:.4f}",
            f"{stage.val_loss:.4f}",
            f"{stage.val_accuracy:.1%}",
            f"{stage.seconds:.1f}",
        )
        for stage in result.stages
    ]
    columns = ("stage", ">epochs", ">trained", ">loss before", ">best loss", ">accuracy", ">seconds")
    print_table(console, columns, rows)
    if result.test is not None:
        test = result.test
        console.print(f"test: accuracy {test.accuracy:.1%}, loss {test.loss:.4f} on {test.images} images")
    print_skipped(console, result.skipped)
    console.print(f"best checkpoint: {result.best_loss}", soft_wrap=True)
    console.print(f"next: {result.next_command}", soft_wrap=True)


def print_evaluation(console: Console, result: Evaluation) -> None:
    console.print(f"{result.checkpoint} on {result.split}:", soft_wrap=True)
    console.print(
        f"accuracy {result.accuracy:.1%}, loss {result.loss:.4f}, {result.images} images, "
        f"calibration error {result.calibration['expected_calibration_error']:.3f}"
    )
    rows = [(r.name, str(r.images), f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}") for r in result.per_class]
    print_table(console, ("class", ">images", ">precision", ">recall", ">F1"), rows)
    console.print("\nconfusion (rows are the true class, columns the one given):")
    header = ("", *(f">{name}" for name in result.classes))
    counts = zip(result.classes, result.confusion, strict=True)
    print_table(console, header, [(name, *map(str, row)) for name, row in counts])
    if result.worst:
        console.print("\nmost confident mistakes:")
        worst = [(m.path, m.label, m.predicted, f"{m.probability:.3f}") for m in result.worst]
        print_table(console, ("image", "true class", "given", ">probability"), worst)
    print_skipped(console, result.skipped)


def print_skipped(console: Console, skipped: Sequence[str]) -> None:
    if skipped:
        console.print(f"broken images left out: {len(skipped)}; the first: {skipped[0]}", soft_wrap=True)
