"""How trainings look."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import print_skipped, print_table
from ftcli.results import TrainResult


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
