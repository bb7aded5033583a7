"""`ftcli extract`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON


def extract(
    source: Annotated[str, typer.Argument(metavar="MODEL|RECIPE|CHECKPOINT", help="Whose features to take.")],
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Keep what a layer of a network gives for each image, and try simple classifiers on it."""
    raise NotImplementedError
