"""`ftcli inspect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.commands.options import JSON, MATCH, SHA256, WEIGHTS
from ftcli.console import TerminalReporter, print_result
from ftcli.errors import RecipeError
from ftcli.results import InspectResult

if TYPE_CHECKING:
    from ftcli.recipe.loading import RecipeFile


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
PLOT_AUGMENT = Annotated[
    Path | None,
    typer.Option(metavar="OUT.png", help="Draw training images of RECIPE and what its augmentation makes of them."),
]
PLOT_ACTIVATIONS = Annotated[
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
    plot_augment: PLOT_AUGMENT = None,
    plot_activations: PLOT_ACTIVATIONS = None,
    layers: LAYERS = None,
    estimate: ESTIMATE = False,
    as_json: JSON = False,
) -> None:
    """Show a network's layers, head, weights and preprocessing; for a recipe what each stage trains."""
    from ftcli.recipe.loading import RecipeFile, backbone_from_options, read_recipe

    source_or_recipe: str | RecipeFile | None = source
    if source is not None and source.lower().endswith((".yaml", ".yml")):
        source_or_recipe = read_recipe(Path(source))  # before torch, which takes seconds to load
    model_name = (
        source_or_recipe if isinstance(source_or_recipe, str) and not source_or_recipe.endswith(".pt") else None
    )
    pretrained = backbone_from_options(model_name, weights, match, sha256)
    _check_options(source, isinstance(source_or_recipe, RecipeFile), plot_augment, plot_activations, layers, estimate)
    from ftcli.inspection import inspect as run

    with TerminalReporter() as reporter:
        result = run(source_or_recipe, depth, reporter, sort, pretrained)
        if plot_augment is not None or plot_activations is not None:
            from ftcli.inspection.exhibits import (  # with matplotlib, which takes a while to load
                PlotArgs,
                draw_plots,
            )

            plot_args = PlotArgs(augmentation=plot_augment, activations=plot_activations, layers=tuple(layers or ()))
            result = draw_plots(result, source_or_recipe, plot_args, pretrained, reporter)
        if estimate and isinstance(source_or_recipe, RecipeFile) and isinstance(result, InspectResult):
            from ftcli.runtime import disable_malloc_trim
            from ftcli.training.estimate import estimate_training

            disable_malloc_trim()  # as training does
            result = replace(result, estimate=estimate_training(source_or_recipe, reporter))
    print_result(result, as_json=as_json)


def _check_options(
    source: str | None,
    is_recipe: bool,
    augment_plot: Path | None,
    activation_plot: tuple[Path, Path] | None,
    layers: list[str] | None,
    estimate: bool,
) -> None:
    """Refuse at once what cannot be drawn or tried."""
    if layers and activation_plot is None:
        raise RecipeError(f"--layer {layers[0]}: does nothing without --plot-activations; add it")
    for option, is_requested in (("--plot-augment", augment_plot is not None), ("--estimate", estimate)):
        if is_requested and not is_recipe:
            raise RecipeError(f"{option}: needs a recipe (.yaml), not {source or 'a list of models'}; give one")
    if augment_plot is None and activation_plot is None:
        return
    from ftcli.files import check_png_path

    for option, path in (
        ("--plot-augment", augment_plot),
        ("--plot-activations", activation_plot[1] if activation_plot else None),
    ):
        if path is not None:
            check_png_path(path, option)
