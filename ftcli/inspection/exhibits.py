"""The pictures that `ftcli inspect` draws where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.errors import RecipeError
from ftcli.inspection.activation_plot import plot_activations
from ftcli.inspection.augmentation_plot import plot_augmentation
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Backbone
from ftcli.results import InspectResult, ModelListResult, Reporter


@dataclass(frozen=True, kw_only=True)
class PlotArgs:
    """What is to be drawn: `augment` is the file for the picture of augmented images; `features` are an image and the
    file for the picture of what the layers of `layers` (or chosen ones) make of it."""

    augmentation: Path | None = None
    activations: tuple[Path, Path] | None = None
    layers: tuple[str, ...] = ()


def draw_plots(
    result: InspectResult | ModelListResult,
    source: str | RecipeFile | None,
    args: PlotArgs,
    pretrained: Backbone | None,
    reporter: Reporter,
) -> InspectResult | ModelListResult:
    """Draw what was wished for, and tell where in the inspection of `source`; as it is where that is nothing.

    `pretrained` are the weights that a model's name goes with. Raises what drawing raises, and RecipeError where
    features are to be drawn of a list of models.
    """
    if args.activations is not None and (source is None or isinstance(result, ModelListResult)):
        raise RecipeError("--plot-activations: needs one network; give the name of a model, a recipe or a checkpoint")
    if isinstance(result, ModelListResult):
        return result
    paths: list[Path] = []
    if args.augmentation is not None and isinstance(source, RecipeFile):
        plot_augmentation(source, args.augmentation, reporter)
        paths.append(args.augmentation)
    if args.activations is not None and source is not None:
        image, path = args.activations
        plot_activations(pretrained or source, image, path, args.layers, reporter)
        paths.append(path)
    return replace(result, pictures=tuple(paths))
