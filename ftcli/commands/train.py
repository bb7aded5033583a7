"""`ftcli train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON, REHASH
from ftcli.console import TerminalReporter, print_result


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML recipe. Not needed with --resume.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Train this stage alone.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Carry on from a checkpoint: from last.pt exactly where it stopped, from another with the next stage."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as stages.all.epochs=3. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder, instead of runs/<name>.")] = None,
    device: DEVICE = "auto",
    rehash: REHASH = False,
    as_json: JSON = False,
) -> None:
    """Train the stages of a recipe, or carry on from a checkpoint."""
    from ftcli.recipe.loading import read_recipe

    recipe_file = read_recipe(recipe, overrides or ()) if recipe else None  # before torch, which takes seconds to load
    from ftcli.runtime import disable_malloc_trim
    from ftcli.training.resume import TrainArgs
    from ftcli.training.trainer import train as run

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        args = TrainArgs(
            recipe=recipe_file,
            stage=stage,
            resume=resume,
            overrides=tuple(overrides or ()),
            out=out,
            device=device,
            rehash=rehash,
        )
        result = run(args, reporter)
    print_result(result, as_json=as_json)
