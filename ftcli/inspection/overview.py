"""Summary of a model, recipe or checkpoint: layers, head, weights, preprocessing, and the plots of `ftcli inspect`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from ftcli.errors import RecipeError
from ftcli.models.factory import check_model, create_model
from ftcli.models.freezing import summarize_stage
from ftcli.models.heads import reset_classifier
from ftcli.models.model_list import build_model_list, is_glob
from ftcli.models.pretrained.loading import load_pretrained
from ftcli.models.pretrained_cfg import get_default_weights, list_downloadable_weights
from ftcli.models.summary import count_parameters, describe_head, find_head, list_layers, summarize
from ftcli.planning import Plan, find_classes, plan_recipe
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.recipe.schema import Backbone
from ftcli.recipe.schema.network import is_url
from ftcli.results import InspectResult, LoadedWeights, ModelListResult, Preprocessing, Reporter
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runs.run_dir import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlotArgs:
    """The plots to draw: the file for augmented images, an image and the file for its activations, and their layers."""

    augmentation: Path | None = None
    activations: tuple[Path, Path] | None = None
    layers: tuple[str, ...] = ()


def inspect(
    source: str | RecipeFile | None,
    depth: int,
    reporter: Reporter,
    sort: str | None = None,
    pretrained: Backbone | None = None,
    plots: PlotArgs = PlotArgs(),
) -> InspectResult | ModelListResult:
    """Inspect a recipe, model or checkpoint (.pt) and draw plots of it; list models if `source` is None or a glob.

    Downloads nothing and allocates no weights, except for `pretrained`, the weights of the model `source`, and for
    plots of activations. Raises RecipeError, DataError, CheckpointError, and RunError if a plot cannot be written.
    """
    result = _inspect_source(source, depth, reporter, sort, pretrained)
    if source is None or isinstance(result, ModelListResult):
        if plots.activations is not None:
            raise RecipeError("--plot-activations: needs one network; give a model, recipe or checkpoint")
        return result
    return replace(result, pictures=_draw_plots(source, plots, pretrained, reporter))


def _inspect_source(
    source: str | RecipeFile | None, depth: int, reporter: Reporter, sort: str | None, pretrained: Backbone | None
) -> InspectResult | ModelListResult:
    if source is None or _is_model_glob(source):
        if pretrained is not None:
            raise RecipeError(f"--weights {pretrained.weights}: needs one model, not {source!r}; name one")
        return build_model_list(source, sort or "name", "inspect", reporter)
    if sort is not None:
        raise RecipeError(f"--sort {sort}: sorts a list of models; give a glob such as 'resnet*', or omit it")
    if isinstance(source, RecipeFile):
        if is_url(weights := source.recipe.backbone.weights):
            logger.info(f"{weights} is not downloaded here; the preprocessing shown is the model's own")
        if source.recipe.data.normalize == "dataset":
            logger.info("mean and std are measured at the start of training; those shown are the model's own")
        return _inspect_plan(plan_recipe(source), find_classes(source, reporter), depth)
    if source.endswith(".pt"):
        return _inspect_checkpoint(Path(source), depth)
    if Path(source).exists():
        raise RecipeError(f"inspect: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one of these")
    check_model(source, "inspect")
    return inspect_model(source, depth) if pretrained is None else _inspect_pretrained(pretrained, depth, reporter)


def _draw_plots(
    source: str | RecipeFile, plots: PlotArgs, pretrained: Backbone | None, reporter: Reporter
) -> tuple[Path, ...]:
    """Draw the plots and return their files."""
    paths: list[Path] = []
    if plots.augmentation is not None and isinstance(source, RecipeFile):
        from ftcli.inspection.augmentation_plot import plot_augmentation  # matplotlib is slow to import

        plot_augmentation(source, plots.augmentation, reporter)
        paths.append(plots.augmentation)
    if plots.activations is not None:
        from ftcli.inspection.activation_plot import plot_activations  # matplotlib is slow to import

        image, path = plots.activations
        plot_activations(pretrained or source, image, path, plots.layers, reporter)
        paths.append(path)
    return tuple(paths)


def _is_model_glob(source: str | RecipeFile) -> TypeGuard[str]:
    return isinstance(source, str) and is_glob(source) and not source.endswith(".pt") and not Path(source).exists()


def inspect_model(name: str, depth: int, preprocessing: Preprocessing | None = None) -> InspectResult:
    """Return the layers of a known model as its library has it, on the meta device.

    `preprocessing` defaults to that of its default weights. `depth` 1 lists the network's children.
    """
    preprocessing = preprocessing or get_default_weights(name).preprocessing
    model = create_model(name, meta=True, image_size=preprocessing.image_size)
    summary = summarize(model, preprocessing.image_size)
    return InspectResult(
        name=name,
        parameters=count_parameters(model),
        trainable=count_parameters(model),
        multiply_adds=summary.multiply_adds,
        head=find_head(model, summary),
        layers=list_layers(model, summary, depth, frozenset()),
        weights=list_downloadable_weights(name),
        preprocessing=preprocessing,
    )


def _inspect_pretrained(backbone: Backbone, depth: int, reporter: Reporter) -> InspectResult:
    loaded = load_pretrained(backbone, "--weights", reporter)
    weights_info = loaded.weights_info
    loaded_weights = LoadedWeights(
        weights_info.source, weights_info.sha256, weights_info.num_loaded, weights_info.skipped
    )
    return replace(inspect_model(backbone.name, depth, loaded.preprocessing), loaded=loaded_weights)


def _inspect_checkpoint(given_path: Path, depth: int) -> InspectResult:
    path, note = find_checkpoint(given_path)
    if note:
        logger.info(note)
    checkpoint = read_checkpoint(path)
    plan = plan_recipe(recipe_from_dict(checkpoint.recipe, str(path)), checkpoint.preprocessing)
    checkpoint_info = {
        "checkpoint": str(path),
        "kind": checkpoint.kind,
        "stage": checkpoint.stage,
        "epoch": checkpoint.epoch,
        **checkpoint.metrics,
        **checkpoint.origin,
        "sha256": checkpoint.digest,
    }
    return _inspect_plan(plan, checkpoint.classes, depth, checkpoint_info)


def _inspect_plan(
    plan: Plan, classes: tuple[str, ...], depth: int, checkpoint_info: dict[str, str | int | float | None] | None = None
) -> InspectResult:
    name, size = plan.recipe.backbone.name, plan.preprocessing.image_size
    model = create_model(name, meta=True, image_size=size)
    reset_classifier(model, plan.recipe, plan.head.path, len(classes))
    last_freezing = plan.stages[-1].frozen_names
    return InspectResult(
        name=name,
        parameters=count_parameters(model),
        trainable=count_parameters(model, last_freezing.parameters),
        multiply_adds=plan.model_summary.multiply_adds,
        head=describe_head(model, plan.head.path),
        layers=list_layers(model, summarize(model, size), depth, last_freezing.parameters),
        weights=list_downloadable_weights(name),
        preprocessing=plan.preprocessing,
        classes=classes,
        stages=tuple(summarize_stage(model, stage.frozen_names, stage.stage.name, size) for stage in plan.stages),
        checkpoint=checkpoint_info,
    )
