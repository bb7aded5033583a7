"""`ftcli init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON
from ftcli.console import TerminalReporter, print_result


def init(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of images, as data.root of a recipe, or a manifest.")
    ],
    name: Annotated[str | None, typer.Option(help="What the run is called. Without it: as the folder.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The network, instead of the one that fits the images.")] = None,
    device: DEVICE = "auto",
    out: Annotated[Path | None, typer.Option(help="The file to write, instead of standard output.")] = None,
    as_json: JSON = False,
) -> None:
    """Write a recipe for a folder of images, with the reasons for its settings: ftcli init DIR > recipe.yaml."""
    from ftcli.advice import InitArgs, draft_recipe

    with TerminalReporter() as reporter:
        result = draft_recipe(InitArgs(data=data, name=name, backbone=backbone, device=device, out=out), reporter)
    print_result(result, as_json=as_json)
