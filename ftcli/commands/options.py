"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
CHECKPOINT = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, such as runs/NAME/best_loss.pt.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
REHASH = Annotated[
    bool, typer.Option("--rehash", help="Hash every image again, however unchanged it looks, before using the cache.")
]
NO_CACHE = Annotated[
    bool, typer.Option("--no-cache", help="Compute everything anew and keep nothing for the next time.")
]
OTHER_DATA = Annotated[Path | None, typer.Option(help="Another folder or manifest; its classes are matched by name.")]
SPLIT = Annotated[
    str | None,
    typer.Option(
        help="train, val, test, or all where --data has no splits. Without it: test, or else val; all of --data."
    ),
]
BATCH_SIZE = Annotated[
    int | None, typer.Option(min=1, max=100_000, help="Images computed at a time. Without it: as in training.")
]
NUM_WORKERS = Annotated[
    int | None, typer.Option(min=0, max=256, help="Processes that load images. Without it: as in training.")
]
WEIGHTS = Annotated[
    str | None, typer.Option(help="Load these weights into MODEL: what a recipe may say under backbone.weights.")
]
MATCH = Annotated[
    str | None, typer.Option(metavar="name|position", help="How the tensors of --weights find their places.")
]
SHA256 = Annotated[str | None, typer.Option(help="The SHA-256 that the file of --weights must have.")]
