"""What there is to know of a model, a recipe or a checkpoint before anything is trained."""

from __future__ import annotations

from pathlib import Path

from ftcli.errors import RecipeError
from ftcli.models.anatomy import describe_head, examine
from ftcli.models.inspection import count_parameters, inspect_model, list_layers, summarize_stage
from ftcli.models.zoo import check_model, list_models, list_timm_models, list_weights
from ftcli.planning import Plan, build_skeleton, find_classes, plan_recipe
from ftcli.recipe.loading import Document, revive_recipe
from ftcli.results import Inspection, ModelList, Reporter
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runs.folder import find_checkpoint


def inspect(source: str | Document | None, depth: int, reporter: Reporter) -> Inspection | ModelList:
    """Look at a recipe, at the model or checkpoint (.pt) that `source` names, or, with None, list the models.

    Nothing is downloaded and no memory is taken for weights. Raises RecipeError, DataError or CheckpointError.
    """
    if source is None:
        return ModelList((*list_models(), *list_timm_models()))
    if isinstance(source, Document):
        return _inspect_plan(plan_recipe(source), find_classes(source, reporter), depth)
    if source.endswith(".pt"):
        return _inspect_checkpoint(Path(source), depth, reporter)
    if Path(source).exists():
        raise RecipeError(f"inspect: {source} is neither a recipe (.yaml) nor a checkpoint (.pt); give one in it")
    check_model(source, "inspect")
    return inspect_model(source, depth)


def _inspect_checkpoint(given: Path, depth: int, reporter: Reporter) -> Inspection:
    path, note = find_checkpoint(given)
    if note:
        reporter.say(note)
    checkpoint = read_checkpoint(path)
    plan = plan_recipe(revive_recipe(checkpoint.recipe, str(path)), checkpoint.preprocessing)
    facts = {
        "checkpoint": str(path),
        "kind": checkpoint.kind,
        "stage": checkpoint.stage,
        "epoch": checkpoint.epoch,
        **checkpoint.metrics,
        **checkpoint.origin,
        "sha256": checkpoint.digest,
    }
    return _inspect_plan(plan, checkpoint.classes, depth, facts)


def _inspect_plan(
    plan: Plan, classes: tuple[str, ...], depth: int, facts: dict[str, str | int | float | None] | None = None
) -> Inspection:
    name, size = plan.recipe.backbone.name, plan.preprocessing.image_size
    model = build_skeleton(plan, len(classes))
    last = plan.stages[-1].freezing
    return Inspection(
        name=name,
        parameters=count_parameters(model),
        trainable=count_parameters(model, last.parameters),
        multiply_adds=plan.anatomy.multiply_adds,
        head=describe_head(model, plan.head.path),
        layers=list_layers(model, examine(model, size), depth, last.parameters),
        weights=list_weights(name),
        preprocessing=plan.preprocessing,
        classes=classes,
        stages=tuple(summarize_stage(model, stage.freezing, stage.stage.name, size) for stage in plan.stages),
        checkpoint=facts,
    )
