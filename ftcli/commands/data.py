"""`ftcli data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import JSON
from ftcli.console import Terminal, print_result
from ftcli.recipe.datasets import NAMES

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make the folders of known data sets.")


@data.callback()
def describe() -> None:
    """Make the folders of known data sets."""


@data.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"A known data set: {', '.join(NAMES)}.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make, instead of data/<name>.")] = None,
    as_json: JSON = False,
) -> None:
    """Make the folder of a known data set."""
    from ftcli.data.fetching import fetch as run

    with Terminal() as terminal:
        result = run(name, out or Path("data") / name, terminal)
    print_result(result, as_json=as_json)
