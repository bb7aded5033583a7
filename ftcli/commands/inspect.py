"""`ftcli inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import JSON
from ftcli.console import Terminal, print_result


def inspect(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|RECIPE|CHECKPOINT]", help="What to look at. Without it, the models are listed."),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="How deep to list modules within modules.")] = 2,
    as_json: JSON = False,
) -> None:
    """Show a network's layers, head, weights and preprocessing; for a recipe what each stage trains."""
    from ftcli.recipe.loading import Document, read_recipe

    what: str | Document | None = source
    if source is not None and source.lower().endswith((".yaml", ".yml")):
        what = read_recipe(Path(source))  # before torch, which takes seconds to load
    from ftcli.analysis.inspection import inspect as run

    with Terminal() as terminal:
        result = run(what, depth, terminal)
    print_result(result, as_json=as_json)
