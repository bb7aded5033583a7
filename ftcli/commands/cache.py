"""`ftcli cache`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftcli.commands.options import JSON
from ftcli.console import TerminalReporter, print_result
from ftcli.errors import RecipeError

cache = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List what is kept on the disk so that it need not be computed or downloaded again, or clear it.",
)


@cache.callback()
def list_entries(context: typer.Context, as_json: JSON = False) -> None:
    """List what is kept on the disk so that it need not be computed or downloaded again, or clear it."""
    context.obj = as_json  # of `ftcli cache --json clear`
    if context.invoked_subcommand is not None:
        return
    from ftcli.caching.listing import list_cache

    print_result(list_cache(), as_json=as_json)


@cache.command()
def clear(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="What ftcli cache shows: the name of a line, or a kind for all lines of it."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Clear everything.")] = False,
    as_json: JSON = False,
) -> None:
    """Take away what is kept under these names."""
    if not names and not everything:
        raise RecipeError("ftcli cache clear: give names that ftcli cache shows, or --all for everything")
    if names and everything:
        raise RecipeError(f"--all: clears {names[0]} too; give names or --all")
    from ftcli.caching.listing import clear_cache

    with TerminalReporter() as reporter:
        result = clear_cache(names or [], reporter, everything)
    print_result(result, as_json=as_json or context.obj)
