"""`ftcli init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON
from ftcli.console import TerminalReporter, print_result

DATA = Annotated[Path, typer.Argument(metavar="DIR", help="An image folder or manifest, as in data.root of a recipe.")]
NAME = Annotated[str | None, typer.Option(help="Name of the run. Default: the folder's name.")]
BACKBONE = Annotated[str | None, typer.Option(help="Backbone. Default: chosen from the number and size of the images.")]
OUT = Annotated[Path | None, typer.Option(help="Recipe file. Default: standard output.")]


def init(
    data: DATA,
    name: NAME = None,
    backbone: BACKBONE = None,
    device: DEVICE = "auto",
    out: OUT = None,
    as_json: JSON = False,
) -> None:
    """Write a recipe for a folder of images. Comments in the recipe explain its settings.

    Example: ftcli init photos > recipe.yaml
    """
    from ftcli.advice.init import InitArgs, draft_recipe

    with TerminalReporter():
        result = draft_recipe(InitArgs(data=data, name=name, backbone=backbone, device=device, out=out))
    print_result(result, as_json=as_json)
