"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from ftcli.errors import RecipeError

if TYPE_CHECKING:
    from ftcli.recipe.loading import RecipeFile

Args = TypeVar("Args")

JSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
CHECKPOINT = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, such as runs/NAME/best_loss.pt.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
REHASH = Annotated[bool, typer.Option("--rehash", help="Hash all image files again, even if they look unchanged.")]
NO_CACHE = Annotated[bool, typer.Option("--no-cache", help="Do not read or write the feature cache.")]
OTHER_DATA = Annotated[
    Path | None,
    typer.Option(help="Image folder or manifest. Default: that of the recipe. Classes are matched by name."),
]
SPLIT = Annotated[
    str | None,
    typer.Option(help="train, val, test, or all if --data has no splits. Default: test, else val, else all."),
]
BATCH_SIZE = Annotated[int | None, typer.Option(min=1, max=100_000, help="Images per batch. Default: as in training.")]
NUM_WORKERS = Annotated[
    int | None, typer.Option(min=0, max=256, help="Number of loader processes. Default: as in training.")
]
WEIGHTS = Annotated[str | None, typer.Option(help="Weights to load into MODEL, as in backbone.weights of a recipe.")]
MATCH = Annotated[
    str | None, typer.Option(metavar="name|position", help="Match tensors of --weights by name or by position.")
]
SHA256 = Annotated[str | None, typer.Option(help="Expected SHA-256 of the --weights file.")]

_RENAMED_OPTIONS = {
    "--workers": "--num-workers",
    "--verify": "--rehash",
    "--picture": "--plot",
    "--show-augment": "--plot-augment",
    "--show-features": "--plot-activations",
    "--recall": "--min-recall",
}


class Command(TyperCommand):
    """A command whose error for a renamed option names the new one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known_options = {option for parameter in self.params for option in parameter.opts}
        for argument in takewhile(lambda argument: argument != "--", args):
            option = argument.partition("=")[0]
            if _RENAMED_OPTIONS.get(option) in known_options - {option}:
                raise RecipeError(f"{option}: unknown option; use {_RENAMED_OPTIONS[option]}")
        return super().parse_args(ctx, args)


def read_recipe_source(source: str | None) -> RecipeFile | None:
    """Return the recipe at `source`, None for the name of a model or a checkpoint."""
    if source is None or not source.lower().endswith((".yaml", ".yml")):
        return None
    from ftcli.recipe.loading import read_recipe

    return read_recipe(Path(source))


def build_args(args_type: type[Args], options: Mapping[str, Any]) -> Args:
    """Return a dataclass of arguments, each field set from the option of the same name."""
    return args_type(**{field.name: options[field.name] for field in fields(args_type)})  # type: ignore[arg-type]
