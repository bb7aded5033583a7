"""What there is to know of a model, a recipe or a checkpoint before anything is trained."""

from __future__ import annotations

from dataclasses import replace
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


def inspect(
    source: str | RecipeFile | None,
    depth: int,
    reporter: Reporter,
    sort: str | None = None,
    pretrained: Backbone | None = None,
) -> InspectResult | ModelListResult:
    """Look at a recipe, at the model or checkpoint (.pt) that `source` names, or, with None or a glob, list the models
    in the order that `sort` names.

    Nothing is downloaded and no memory is taken for weights, but where `pretrained`, of the model `source`, asks for
    them. Raises RecipeError, DataError or CheckpointError.
    """
    if source is None or _is_model_glob(source):
        if pretrained is not None:
            raise RecipeError(f"--weights {pretrained.weights}: goes with one model, not with {source!r}; name one")
        return build_model_list(source, sort or "name", "inspect", reporter)
    if sort is not None:
        raise RecipeError(f"--sort {sort}: orders a list of models; give a glob such as 'resnet*', or leave it out")
    if isinstance(source, RecipeFile):
        if is_url(weights := source.recipe.backbone.weights):
            reporter.info(
                f"{weights} is not asked here; unless it says otherwise, the preprocessing is the model's own"
            )
        if source.recipe.data.normalize == "dataset":
            reporter.info("mean and std are measured when training begins; until then they are the model's own")
        return _inspect_plan(plan_recipe(source), find_classes(source, reporter), depth)
    if source.endswith(".pt"):
        return _inspect_checkpoint(Path(source), depth, reporter)
    if Path(source).exists():
        raise RecipeError(f"inspect: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one in it")
    check_model(source, "inspect")
    return inspect_model(source, depth) if pretrained is None else _inspect_pretrained(pretrained, depth, reporter)


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


def _inspect_checkpoint(given_path: Path, depth: int, reporter: Reporter) -> InspectResult:
    path, note = find_checkpoint(given_path)
    if note:
        reporter.info(note)
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
