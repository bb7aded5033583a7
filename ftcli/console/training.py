"""How trainings look."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console

from ftcli.console.tables import print_skipped, print_table
from ftcli.results import StageTimes, TrainResult


def print_train_result(console: Console, result: TrainResult) -> None:
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
    _print_times(console, result)
    if result.test is not None:
        test = result.test
        console.print(f"test: accuracy {test.accuracy:.1%}, loss {test.loss:.4f} on {test.images} images")
    print_skipped(console, result.skipped)
    console.print(f"best checkpoint: {result.best_loss}", soft_wrap=True)
    console.print(f"next: {result.next_command}", soft_wrap=True)


def _print_times(console: Console, result: TrainResult) -> None:
    """Where the seconds of the stages went; parts that took none have no column."""
    if result.bottleneck is None:
        return
    parts = [part.name for part in fields(StageTimes)]
    shown = [part for part in parts if any(getattr(stage.times, part) >= 0.05 for stage in result.stages)]
    rows = [(stage.name, *(f"{getattr(stage.times, part):.1f}" for part in shown)) for stage in result.stages]
    print_table(console, ("seconds for", *(f">{part}" for part in shown)), rows)
    console.print(result.bottleneck)
