"""`ftcli data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import JSON, Command
from ftcli.console import TerminalReporter, print_result
from ftcli.errors import RecipeError
from ftcli.recipe.dataset_names import DATASET_NAMES

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Download known data sets.")

NAME = Annotated[str, typer.Argument(metavar="NAME", help=f"Name of a known data set: {', '.join(DATASET_NAMES)}.")]
OUT = Annotated[Path | None, typer.Option(help="Target folder. Default: data/NAME.")]


@data.callback()
def data_callback() -> None:
    """Download known data sets."""


@data.command(cls=Command)
def download(name: NAME, out: OUT = None, as_json: JSON = False) -> None:
    """Download a known data set into a folder."""
    from ftcli.datasets import download_dataset as run

    with TerminalReporter() as reporter:
        result = run(name, out or Path("data") / name, reporter)
    print_result(result, as_json=as_json)


@data.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def fetch() -> None:
    """Raise an error that names the new command."""
    raise RecipeError("ftcli data fetch: unknown command; use ftcli data download")
