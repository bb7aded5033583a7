"""Options that several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.errors import RecipeError

if TYPE_CHECKING:
    from ftcli.recipe.schema import Backbone

JSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
WEIGHTS = Annotated[
    str | None, typer.Option(help="Load these weights into MODEL: what a recipe may say under backbone.weights.")
]
MATCH = Annotated[
    str | None, typer.Option(metavar="name|position", help="How the tensors of --weights find their places.")
]
SHA256 = Annotated[str | None, typer.Option(help="The SHA-256 that the file of --weights must have.")]


def choose_weights(model: str | None, weights: str | None, match: str | None, sha256: str | None) -> Backbone | None:
    """The weights that go with the name of a model; None where none are asked for. `model` is None where a recipe or a
    checkpoint is given. Raises RecipeError with what is wrong with the options."""
    if weights is None:
        if match or sha256:
            raise RecipeError(f"--{'match' if match else 'sha256'}: does nothing without --weights; add it")
        return None
    if model is None:
        raise RecipeError(
            f"--weights {weights}: goes with the name of a model; a recipe or checkpoint has weights of its own"
        )
    from ftcli.recipe.loading import check_backbone

    return check_backbone(model, weights, match, sha256)
