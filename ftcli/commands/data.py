"""`ftcli data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import JSON
from ftcli.console import TerminalReporter, print_result
from ftcli.recipe.dataset_names import DATASET_NAMES

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make the folders of known data sets.")


@data.callback()
def data_callback() -> None:
    """Make the folders of known data sets."""


@data.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"A known data set: {', '.join(DATASET_NAMES)}.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make, instead of data/<name>.")] = None,
    as_json: JSON = False,
) -> None:
    """Make the folder of a known data set."""
    from ftcli.datasets import download_dataset as run

    with TerminalReporter() as terminal:
        result = run(name, out or Path("data") / name, terminal)
    print_result(result, as_json=as_json)
