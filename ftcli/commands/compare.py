"""`ftcli compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or checkpoints in them.")],
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Set runs beside one another: what differs in their recipes, their curves, and whether one is truly better."""
    raise NotImplementedError
