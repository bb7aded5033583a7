"""`ftcli train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON, REHASH
from ftcli.console import TerminalReporter, print_result

RECIPE = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A YAML recipe. Optional with --resume.")]
STAGE = Annotated[str | None, typer.Option(help="Train only this stage.")]
RESUME = Annotated[
    Path | None,
    typer.Option(help="Start from a checkpoint: last.pt resumes its run, any other file starts the next stage."),
]
OVERRIDES = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as stages.all.epochs=3. Repeatable."),
]
OUT = Annotated[Path | None, typer.Option(help="Run directory. Default: runs/NAME.")]


def train(
    recipe: RECIPE = None,
    stage: STAGE = None,
    resume: RESUME = None,
    overrides: OVERRIDES = None,
    out: OUT = None,
    device: DEVICE = "auto",
    rehash: REHASH = False,
    as_json: JSON = False,
) -> None:
    """Train the stages of a recipe, or resume a run."""
    from ftcli.recipe.loading import read_recipe

    recipe_file = read_recipe(recipe, overrides or ()) if recipe else None  # before torch, which is slow to import
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
