"""`ftcli predict`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import BATCH_SIZE, CHECKPOINT, DEVICE, NUM_WORKERS
from ftcli.console import OutputFormat, TerminalReporter, is_regular_file, write_predictions
from ftcli.errors import DataError, RecipeError
from ftcli.results import DEFAULT_TOP_K


def predict(
    checkpoint: CHECKPOINT,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Files, folders, patterns such as 'photos/**/*.jpg', or - for a list of files on standard input.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to tell of each image.")] = DEFAULT_TOP_K,
    form: Annotated[OutputFormat | None, typer.Option("--format", help="Without it: table.")] = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    out: Annotated[Path | None, typer.Option(help="The file to write, instead of standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Tell the most probable classes of images, with the preprocessing of the checkpoint."""
    output_format = OutputFormat.JSON if as_json else form or OutputFormat.TABLE
    if form not in (None, output_format):
        raise RecipeError(f"--format {form}: --json asks for another form; give one of the two")
    stdout = sys.stdout
    from ftcli.data.input_paths import find_images
    from ftcli.files import atomic_open, check_output_path

    if out is not None:
        check_output_path(out, "--out")
    input_paths = find_images(images or (), sys.stdin.buffer)  # before torch, which takes seconds to load
    from ftcli.evaluation.predict import PredictArgs
    from ftcli.evaluation.predict import predict as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter(show_bar=out is not None or is_regular_file(stdout)) as reporter:
        args = PredictArgs(
            checkpoint=checkpoint,
            images=input_paths,
            top=top,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
        )
        predictions = run(args, reporter)
        with atomic_open(out) if out else nullcontext(stdout) as stream:
            num_predicted, num_failed = write_predictions(predictions, output_format, stream)
    if num_failed:
        raise DataError(
            f"predict: {num_failed} of {num_predicted + num_failed} images cannot be read; each is named above, the others are predicted"
        )
