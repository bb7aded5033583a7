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
    build_args,
)
from ftcli.console import TerminalReporter, print_result

MIN_RECALL = Annotated[
    float | None,
    typer.Option(help="With two classes: choose the threshold with the best precision at this recall, such as 0.95."),
]
TTA = Annotated[
    str | None,
    typer.Option(
        metavar="flips", help="Average each image over four views: original, flipped horizontally, vertically, both."
    ),
]
CALIBRATE = Annotated[
    bool, typer.Option("--calibrate", help="Fit a temperature on val, and save and evaluate a calibrated checkpoint.")
]
OUT = Annotated[Path | None, typer.Option(help="Checkpoint written by --calibrate. Default: CHECKPOINT-calibrated.pt.")]
PREDICTIONS = Annotated[
    Path | None, typer.Option(help="Save the predictions of all images to a .csv or .parquet file.")
]
REPORT = Annotated[Path | None, typer.Option(help="Save an HTML report with plots.")]


def evaluate(
    checkpoint: CHECKPOINT,
    data: OTHER_DATA = None,
    split: SPLIT = None,
    min_recall: MIN_RECALL = None,
    tta: TTA = None,
    calibrate: CALIBRATE = False,
    out: OUT = None,
    predictions: PREDICTIONS = None,
    report: REPORT = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    no_cache: NO_CACHE = False,
    rehash: REHASH = False,
    as_json: JSON = False,
) -> None:
    """Compute the metrics of a checkpoint. Print 95% intervals, the confusion matrix, calibration and errors."""
    options = {**locals(), "use_cache": not no_cache}
    from ftcli.evaluation.eval_setup import EvaluateArgs
    from ftcli.evaluation.evaluate import evaluate as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        result = run(build_args(EvaluateArgs, options), reporter)
    print_result(result, as_json=as_json)
