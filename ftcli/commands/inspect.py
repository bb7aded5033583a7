"""`ftcli inspect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import JSON, MATCH, SHA256, WEIGHTS, read_recipe_source
from ftcli.console import TerminalReporter, print_result
from ftcli.errors import RecipeError
from ftcli.files import check_writable
from ftcli.results import InspectResult

SOURCE = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL|GLOB|RECIPE|CHECKPOINT",
        help="The network to inspect, or a glob ('resnet*') of models to list. Default: list all models.",
    ),
]
DEPTH = Annotated[int, typer.Option(min=1, help="Levels of nested modules to list.")]
SORT = Annotated[
    str | None,
    typer.Option(
        metavar="name|size|speed|accuracy",
        help="Sort listed models by name, parameters, multiply-adds or accuracy. Default: name.",
    ),
]
PLOT_AUGMENT = Annotated[
    Path | None, typer.Option(metavar="OUT.png", help="Plot training images of RECIPE with its augmentation.")
]
PLOT_ACTIVATIONS = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="IMAGE OUT.png", help="Plot the activations of early and late layers for an image."),
]
LAYERS = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="Layer for --plot-activations. Repeatable. Default: five layers."),
]
ESTIMATE = Annotated[
    bool, typer.Option("--estimate", help="Estimate time and memory of each stage of RECIPE on this machine.")
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
    """Show the layers, head and weights of a network. For a recipe, also show what each stage trains."""
    from ftcli.recipe.loading import backbone_from_options

    recipe_file = read_recipe_source(source)  # before torch, which is slow to import
    is_model = source is not None and recipe_file is None and not source.endswith(".pt")
    backbone = backbone_from_options(source if is_model else None, weights, match, sha256)
    _check_recipe_options(source, recipe_file is not None, plot_augment, estimate)
    _check_plot_options(plot_augment, plot_activations, layers)
    from ftcli.inspection import PlotArgs
    from ftcli.inspection import inspect as run

    plots = PlotArgs(augmentation=plot_augment, activations=plot_activations, layers=tuple(layers or ()))
    with TerminalReporter() as reporter:
        result = run(recipe_file or source, depth, reporter, sort, backbone, plots)
        if estimate and recipe_file is not None and isinstance(result, InspectResult):
            from ftcli.runtime import disable_malloc_trim
            from ftcli.training.estimate import estimate_training

            disable_malloc_trim()
            result = replace(result, estimate=estimate_training(recipe_file, reporter))
    print_result(result, as_json=as_json)


def _check_recipe_options(source: str | None, is_recipe: bool, plot_augment: Path | None, estimate: bool) -> None:
    """Raise RecipeError if an option needs a recipe and `source` is something else."""
    for option, is_given in (("--plot-augment", plot_augment is not None), ("--estimate", estimate)):
        if is_given and not is_recipe:
            raise RecipeError(f"{option}: needs a recipe (.yaml), not {source or 'a list of models'}; give one")


def _check_plot_options(
    plot_augment: Path | None, plot_activations: tuple[Path, Path] | None, layers: list[str] | None
) -> None:
    """Raise RecipeError if a plot cannot be written, or if --layer has no effect."""
    if layers and plot_activations is None:
        raise RecipeError(f"--layer {layers[0]}: has no effect without --plot-activations; add it")
    if plot_augment is not None:
        check_writable(plot_augment, "--plot-augment", [".png"])
    if plot_activations is not None:
        check_writable(plot_activations[1], "--plot-activations", [".png"])
