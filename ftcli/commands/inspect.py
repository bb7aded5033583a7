"""`ftcli inspect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.commands.options import JSON, MATCH, SHA256, WEIGHTS
from ftcli.console import Terminal, print_result
from ftcli.errors import RecipeError
from ftcli.results import Inspection

if TYPE_CHECKING:
    from ftcli.recipe.loading import Document


SOURCE = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL|GLOB|RECIPE|CHECKPOINT]",
        help="What to look at. Without it the models are listed; with a glob ('resnet*') those that match.",
    ),
]
DEPTH = Annotated[int, typer.Option(min=1, help="How deep to list modules within modules.")]
SORT = Annotated[
    str | None,
    typer.Option(
        metavar="name|size|speed|accuracy",
        help="Order of the models in a list: name (as without it), size (fewest parameters first), speed (fewest "
        "multiply-adds first, which stand for it), accuracy (best first).",
    ),
]
AUGMENT = Annotated[
    Path | None,
    typer.Option(metavar="OUT.png", help="Draw training images of RECIPE and what its augmentation makes of them."),
]
FEATURES = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="IMAGE OUT.png", help="Draw what early and late layers see in an image."),
]
LAYERS = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="A layer for --plot-activations, instead of five. Repeatable."),
]
ESTIMATE = Annotated[
    bool, typer.Option("--estimate", help="Try steps of RECIPE here, and tell the time and memory of its stages.")
]


def inspect(
    source: SOURCE = None,
    depth: DEPTH = 2,
    sort: SORT = None,
    weights: WEIGHTS = None,
    match: MATCH = None,
    sha256: SHA256 = None,
    plot_augment: AUGMENT = None,
    plot_activations: FEATURES = None,
    layers: LAYERS = None,
    estimate: ESTIMATE = False,
    as_json: JSON = False,
) -> None:
    """Show a network's layers, head, weights and preprocessing; for a recipe what each stage trains."""
    from ftcli.recipe.loading import Document, choose_weights, read_recipe

    what: str | Document | None = source
    if source is not None and source.lower().endswith((".yaml", ".yml")):
        what = read_recipe(Path(source))  # before torch, which takes seconds to load
    name = what if isinstance(what, str) and not what.endswith(".pt") else None
    pretrained = choose_weights(name, weights, match, sha256)
    _check_wishes(source, isinstance(what, Document), plot_augment, plot_activations, layers, estimate)
    from ftcli.analysis.inspection import inspect as run

    with Terminal() as terminal:
        result = run(what, depth, terminal, sort, pretrained)
        if plot_augment is not None or plot_activations is not None:
            from ftcli.analysis.inspection.exhibits import (  # with matplotlib, which takes a while to load
                Wish,
                add_exhibits,
            )

            wish = Wish(augment=plot_augment, features=plot_activations, layers=tuple(layers or ()))
            result = add_exhibits(result, what, wish, pretrained, terminal)
        if estimate and isinstance(what, Document) and isinstance(result, Inspection):
            from ftcli.runtime import keep_freed_memory
            from ftcli.training.estimation import estimate_training

            keep_freed_memory()  # as training does
            result = replace(result, estimate=estimate_training(what, terminal))
    print_result(result, as_json=as_json)


def _check_wishes(
    source: str | None,
    is_recipe: bool,
    augment: Path | None,
    features: tuple[Path, Path] | None,
    layers: list[str] | None,
    estimate: bool,
) -> None:
    """Refuse at once what cannot be drawn or tried."""
    if layers and features is None:
        raise RecipeError(f"--layer {layers[0]}: does nothing without --plot-activations; add it")
    for option, wanted in (("--plot-augment", augment is not None), ("--estimate", estimate)):
        if wanted and not is_recipe:
            raise RecipeError(f"{option}: needs a recipe (.yaml), not {source or 'a list of models'}; give one")
    if augment is None and features is None:
        return
    from ftcli.analysis.pictures import check_target

    for option, target in (("--plot-augment", augment), ("--plot-activations", features[1] if features else None)):
        if target is not None:
            check_target(target, option)
