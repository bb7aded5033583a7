"""`ftcli cache`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftcli.commands.options import JSON, Command
from ftcli.console import TerminalReporter, print_result
from ftcli.errors import RecipeError

cache = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List or clear the cache: features, images, downloads, file hashes and measured choices.",
    short_help="List or clear the cache.",
)


@cache.callback()
def list_entries(context: typer.Context, as_json: JSON = False) -> None:
    """List or clear the cache: features, images, downloads, file hashes and measured choices."""
    context.obj = as_json  # for `ftcli cache --json clear`
    if context.invoked_subcommand is not None:
        return
    from ftcli.caching.listing import list_cache

    print_result(list_cache(), as_json=as_json)


@cache.command(cls=Command)
def clear(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Names or kinds of entries to remove, as listed by `ftcli cache`."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all entries.")] = False,
    as_json: JSON = False,
) -> None:
    """Remove entries from the cache."""
    if not names and not everything:
        raise RecipeError("ftcli cache clear: no names given; add names that ftcli cache lists, or --all")
    if names and everything:
        raise RecipeError(f"--all: cannot be combined with names such as {names[0]}; remove one of them")
    from ftcli.caching.listing import clear_cache

    with TerminalReporter():
        result = clear_cache(names or [], everything)
    print_result(result, as_json=as_json or context.obj)
