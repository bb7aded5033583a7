"""`ftcli evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON
from ftcli.console import Terminal, print_result


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that ftcli train wrote.")],
    data: Annotated[
        Path | None, typer.Option(help="Another folder or manifest; its classes are matched by name.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test, or all where --data has no splits. Without it: test, or else val; all of --data."
        ),
    ] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Measure a checkpoint: loss, accuracy, figures of each class, confusion, the worst mistakes."""
    from ftcli.analysis.evaluation import evaluate as run
    from ftcli.analysis.measurement import Question
    from ftcli.runtime import keep_freed_memory

    keep_freed_memory()
    with Terminal() as terminal:
        result = run(Question(checkpoint=checkpoint, data=data, split=split, device=device), terminal)
    print_result(result, as_json=as_json)
