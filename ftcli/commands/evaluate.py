"""`ftcli evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import (
    BATCH_SIZE,
    CHECKPOINT,
    DEVICE,
    JSON,
    NO_CACHE,
    NUM_WORKERS,
    OTHER_DATA,
    REHASH,
    SPLIT,
)
from ftcli.console import TerminalReporter, print_result


def evaluate(
    checkpoint: CHECKPOINT,
    data: OTHER_DATA = None,
    split: SPLIT = None,
    min_recall: Annotated[
        float | None,
        typer.Option(help="Of two classes: the threshold of the best precision at this recall, such as 0.95."),
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="flips",
            help="Average each image's probabilities over four views: as it is, mirrored left to right, top to bottom, "
            "and both.",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Write a new checkpoint with a temperature, fitted on val, in its head, and measure that one.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where --calibrate writes it. Without it: CHECKPOINT-calibrated.pt.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A .csv or .parquet file for a row an image: label, answer, probabilities.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="An .html file for the whole report, with plots.")] = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    no_cache: NO_CACHE = False,
    rehash: REHASH = False,
    as_json: JSON = False,
) -> None:
    """Measure a checkpoint: figures with 95 % intervals, confusion, calibration, thresholds, the worst mistakes."""
    from ftcli.evaluation.eval_setup import EvaluateArgs
    from ftcli.evaluation.evaluate import evaluate as run
    from ftcli.evaluation.evaluate_args import EvaluateOptions
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        eval_args = EvaluateArgs(
            checkpoint=checkpoint,
            data=data,
            split=split,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            tta=tta,
            use_cache=not no_cache,
            rehash=rehash,
        )
        output_args = EvaluateOptions(
            min_recall=min_recall, calibrate=calibrate, out=out, predictions=predictions, report=report
        )
        result = run(eval_args, output_args, reporter)
    print_result(result, as_json=as_json)
