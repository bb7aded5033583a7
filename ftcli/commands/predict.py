"""`ftcli predict`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import BATCH_SIZE, CHECKPOINT, DEVICE, NUM_WORKERS
from ftcli.console import Form, Terminal, is_file, write_predictions
from ftcli.errors import DataError, RecipeError
from ftcli.results import TOP


def predict(
    checkpoint: CHECKPOINT,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Files, folders, patterns such as 'photos/**/*.jpg', or - for a list of files on standard input.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to tell of each image.")] = TOP,
    form: Annotated[Form | None, typer.Option("--format", help="Without it: table.")] = None,
    batch_size: BATCH_SIZE = None,
    num_workers: NUM_WORKERS = None,
    device: DEVICE = "auto",
    out: Annotated[Path | None, typer.Option(help="The file to write, instead of standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Tell the most probable classes of images, with the preprocessing of the checkpoint."""
    chosen = Form.JSON if as_json else form or Form.TABLE
    if form not in (None, chosen):
        raise RecipeError(f"--format {form}: --json asks for another form; give one of the two")
    stdout = sys.stdout
    from ftcli.data.finding import find_images
    from ftcli.storage import check_place, replace_gradually

    if out is not None:
        check_place(out, "--out")
    found = find_images(images or (), sys.stdin.buffer)  # before torch, which takes seconds to load
    from ftcli.inference.prediction import Wish
    from ftcli.inference.prediction import predict as run
    from ftcli.runtime import keep_freed_memory

    keep_freed_memory()
    with Terminal(bar=out is not None or is_file(stdout)) as terminal:
        wish = Wish(
            checkpoint=checkpoint, images=found, top=top, batch_size=batch_size, num_workers=num_workers, device=device
        )
        predictions = run(wish, terminal)
        with replace_gradually(out) if out else nullcontext(stdout) as stream:
            made, failed = write_predictions(predictions, chosen, stream)
    if failed:
        raise DataError(
            f"predict: {failed} of {made + failed} images cannot be read; each is named above, the others are predicted"
        )
