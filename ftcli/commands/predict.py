"""`ftcli predict`."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TextIO

import typer

from ftcli.commands.options import BATCH_SIZE, CHECKPOINT, DEVICE, NUM_WORKERS
from ftcli.console import OutputFormat, TerminalReporter, write_predictions
from ftcli.errors import DataError, RecipeError
from ftcli.results import DEFAULT_TOP_K, format_count

IMAGES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE...",
        help="Files, folders, glob patterns such as 'photos/**/*.jpg', or - for a list of files on standard input.",
    ),
]
TOP = Annotated[int, typer.Option(min=1, help="Number of most probable classes per image.")]
FORMAT = Annotated[OutputFormat | None, typer.Option("--format", help="Output format. Default: table.")]
OUT = Annotated[Path | None, typer.Option(help="Output file. Default: standard output.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Same as --format json.")]


def predict(
    checkpoint: CHECKPOINT,
    images: IMAGES = None,
    top: TOP = DEFAULT_TOP_K,
    output_format: FORMAT = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    out: OUT = None,
    as_json: AS_JSON = False,
) -> None:
    """Predict the classes of images."""
    if as_json and output_format not in (None, OutputFormat.JSON):
        raise RecipeError(f"--format {output_format}: cannot be combined with --json; remove one of them")
    stdout = sys.stdout
    from ftcli.data.input_paths import find_images
    from ftcli.files import atomic_open, check_output_path

    if out is not None:
        check_output_path(out, "--out")
    input_paths = find_images(images or (), sys.stdin.buffer)  # before torch, which is slow to import
    from ftcli.evaluation.predict import PredictArgs
    from ftcli.evaluation.predict import predict as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter(show_bar=out is not None or _is_regular_file(stdout)) as reporter:
        args = PredictArgs(
            checkpoint=checkpoint,
            images=input_paths,
            top=top,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
        )
        predictions = run(args, reporter)
        resolved_format = OutputFormat.JSON if as_json else output_format or OutputFormat.TABLE
        with atomic_open(out) if out else nullcontext(stdout) as stream:
            num_predicted, num_failed = write_predictions(predictions, resolved_format, stream)
    if num_failed:
        raise DataError(
            f"predict: {num_failed} of {format_count(num_predicted + num_failed, 'image')} cannot be read; "
            "the warnings name them"
        )


def _is_regular_file(stream: TextIO) -> bool:
    """Return whether the stream is a file. A pipe is not: it may lead to the terminal that shows the progress bar."""
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
