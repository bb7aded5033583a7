"""What a recipe comes to before anything is trained: what is frozen, where the network is cut, how many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ftcli.data.dataset import ImageDataset, sample_sort_key, split_images
from ftcli.data.manifests import is_manifest
from ftcli.datasets import download_dataset
from ftcli.errors import CheckpointError, DataError, RecipeError
from ftcli.models.factory import adapt_preprocessing, check_model, create_model, default_preprocessing
from ftcli.models.freezing import FrozenNames, find_stage_errors, resolve_freeze, resolve_lr_mults
from ftcli.models.heads import build_head, replace_head
from ftcli.models.sizes import create_meta_model
from ftcli.models.summary import ModelSummary, find_head, summarize
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Data, HeadFitStage, Recipe, Stage
from ftcli.results import HeadInfo, Preprocessing, Reporter
from ftcli.runtime import derive_seed


@dataclass(frozen=True)
class StagePlan:
    """A stage with the names of the network filled in. `rates` maps parameters to multiples of the learning rate;
    `backward_fraction` is the share of the network's multiply-adds that gradients flow through."""

    stage: Stage
    frozen_names: FrozenNames
    lr_mults: Mapping[str, float]
    backward_fraction: float


@dataclass(frozen=True)
class HeadFitPlan:
    """A stage that is solved instead of trained, with the names of the network filled in. Its head is a single linear
    layer that reads a vector."""

    stage: HeadFitStage
    frozen_names: FrozenNames


AnyStagePlan = StagePlan | HeadFitPlan


@dataclass(frozen=True)
class Plan:
    """A recipe that fits its network. `head` is the place of the head, as wide as the backbone left it."""

    recipe: Recipe
    preprocessing: Preprocessing
    model_summary: ModelSummary
    head: HeadInfo
    stages: tuple[AnyStagePlan, ...]

    @property
    def head_is_linear(self) -> bool:
        """Whether the last layer is a linear one that reads one vector for an image, and no 1 x 1 convolution, nor one
        that reads a vector at each of many places."""
        shape = self.model_summary.shapes[self.head.path]
        return self.head.type == "Linear" and shape is not None and len(shape) == 1


def plan_recipe(recipe_file: RecipeFile, preprocessing: Preprocessing | None = None) -> Plan:
    """Fill a recipe's patterns with the names of its network. No memory is taken for weights, no image is read.

    `preprocessing` is given where a checkpoint has settled it. Raises RecipeError with every fault at once: a model,
    module or pattern that is not there, a stage that trains nothing, an input size that the network refuses.
    """
    recipe = recipe_file.recipe
    name_location = recipe_file.locate("backbone", "name")
    check_model(recipe.backbone.name, name_location)
    weights_location = recipe_file.locate("backbone", "weights")
    chosen = preprocessing or adapt_preprocessing(
        default_preprocessing(recipe.backbone.name, recipe.backbone.weights, weights_location), recipe.data
    )
    size_location = recipe_file.locate("data", "image_size")
    model, summary = create_meta_model(recipe.backbone.name, chosen.image_size, size_location)
    head = find_head(model, summary, name_location)
    replace_head(model, head.path, build_head(model.get_submodule(head.path), recipe.head, num_classes=2))
    summary = summarize(model, chosen.image_size, size_location)
    plan = Plan(recipe, chosen, summary, head, ())
    stages: list[AnyStagePlan] = []
    errors: list[str] = []
    for index in range(len(recipe.stages)):
        try:
            stages.append(_plan_stage(recipe_file, index, model, plan))
        except RecipeError as error:
            errors += error.messages
    if errors:
        raise RecipeError(*errors, *_missing_data_errors(recipe_file))
    return replace(plan, stages=tuple(stages))


def _plan_stage(recipe_file: RecipeFile, index: int, model: nn.Module, plan: Plan) -> AnyStagePlan:
    stage, head = plan.recipe.stages[index], plan.head.path

    def locate(key: str) -> str:
        return recipe_file.locate("stages", index, key)

    if isinstance(stage, HeadFitStage):
        _check_head_fit(plan, locate("fit"), recipe_file.locate("head", "hidden"))
        return HeadFitPlan(stage, resolve_freeze(model, plan.model_summary, head, stage, locate("freeze")))
    if errors := find_stage_errors(model, plan.model_summary, head, stage, locate):
        raise RecipeError(*errors)
    frozen_names = resolve_freeze(model, plan.model_summary, head, stage, locate("freeze"))
    lr_mults = resolve_lr_mults(model, head, stage.lr_mult, locate("lr_mult"))
    trainable = [name for name, _ in model.named_parameters() if name not in frozen_names.parameters]
    return StagePlan(stage, frozen_names, lr_mults, plan.model_summary.backward_fraction(trainable))


def _check_head_fit(plan: Plan, location: str, hidden_location: str) -> None:
    requirement = "a head is solved as a single linear layer"
    if widths := plan.recipe.head.hidden:
        raise RecipeError(
            f"{hidden_location}: {list(widths)} puts hidden layers in the head, and {requirement} ({location}); set head.hidden: [], or "
            "give the stage epochs and an optimizer instead of a solver"
        )
    if not plan.head_is_linear:
        raise RecipeError(
            f"{location}: {requirement} that reads a vector, and that of {plan.recipe.backbone.name}, {plan.head.path}, does "
            f"not ({plan.head.type}); give the stage epochs and an optimizer instead of a solver, or choose another "
            "model"
        )


def _missing_data_errors(recipe_file: RecipeFile) -> Sequence[str]:
    data, location = recipe_file.recipe.data, recipe_file.locate("data", "root")
    missing = () if data.download else _list_missing_roots(data)
    return tuple(
        f"{location}: {root} does not exist; give the "
        f"{'manifest that lists' if is_manifest(Path(root)) else 'folder that holds'} the images"
        for root in missing
    )


def _list_missing_roots(data: Data) -> Sequence[str]:
    return [root for root in data.roots if not Path(root).exists()]


def load_dataset(
    recipe_file: RecipeFile, reporter: Reporter, previous_splits: Mapping[str, str] | None = None
) -> ImageDataset:
    """The images of a recipe with their classes and splits; a known data set is made first if its folder is missing.

    Raises DataError with every fault of the folders and manifests at once.
    """
    data = recipe_file.recipe.data
    if data.download:
        for root in _list_missing_roots(data):
            download_dataset(data.download, Path(root), reporter)
    return split_images(data, recipe_file.recipe.seed, recipe_file.locate("data", "root"), previous_splits)


def align_classes(images: ImageDataset, classes: Sequence[str], location: str) -> ImageDataset:
    """The same images, labelled and sorted in the order of a checkpoint's classes.

    Raises CheckpointError that names the classes if they are not the same ones; positions are never compared.
    """
    if set(images.classes) != set(classes):
        missing = ", ".join(name for name in classes if name not in images.classes) or "none"
        unknown = ", ".join(name for name in images.classes if name not in classes) or "none"
        raise CheckpointError(
            f"{location}: was trained on other classes than {images.source} has: missing there: {missing}; unknown to the "
            f"checkpoint: {unknown}; give the folder it belongs to, or train anew"
        )
    new_labels = {images.classes.index(name): label for label, name in enumerate(classes)}
    splits = {
        split: tuple(
            sorted((sample._replace(label=new_labels[sample.label]) for sample in samples), key=sample_sort_key)
        )
        for split, samples in images.splits.items()
    }
    return replace(images, classes=tuple(classes), splits=splits)


def find_classes(recipe_file: RecipeFile, reporter: Reporter) -> tuple[str, ...]:
    """The classes of a recipe: those it names, or those of its images. Nothing is fetched.

    Raises DataError where there is neither.
    """
    data = recipe_file.recipe.data
    if data.classes is not None:
        return data.classes
    if missing := _list_missing_roots(data):
        source_type = "manifest" if is_manifest(Path(missing[0])) else "folder"
        remedy = f"run `ftcli data download {data.download}`" if data.download else f"make the {source_type}"
        raise DataError(
            f"{recipe_file.locate('data', 'root')}: {missing[0]} does not exist, so the classes are unknown; {remedy}, or "
            "name them in data.classes"
        )
    return load_dataset(recipe_file, reporter).classes


def estimate_seconds(plan: AnyStagePlan, num_train: int, num_val: int, forward_seconds: float) -> float:
    """About how long a stage takes on `train` and `val` images when a forward pass takes `forward` seconds an image.

    A backward pass is counted as twice the forward pass of what gradients flow through; a stage that is solved is one
    forward pass.
    """
    if isinstance(plan, HeadFitPlan):
        return forward_seconds * (num_train + num_val)
    return plan.stage.epochs * forward_seconds * (num_train * (1 + 2 * plan.backward_fraction) + num_val)


def build_model(plan: Plan) -> nn.Module:
    """The recipe's network with random weights, the same for the same seed, and its original head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.recipe.seed, "backbone"))
        return create_model(plan.recipe.backbone.name, False, plan.preprocessing.image_size)


def build_meta_model(plan: Plan, num_classes: int) -> nn.Module:
    """The recipe's network with a head for `classes` classes, without memory for weights."""
    model = create_model(plan.recipe.backbone.name, True, plan.preprocessing.image_size)
    original = model.get_submodule(plan.head.path)
    replace_head(model, plan.head.path, build_head(original, plan.recipe.head, num_classes))
    return model


def reset_classifier(model: nn.Module, plan: Plan, num_classes: int) -> None:
    """Put the recipe's head for `classes` classes in place of the one that is there, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.recipe.seed, "head"))
        replace_head(
            model, plan.head.path, build_head(model.get_submodule(plan.head.path), plan.recipe.head, num_classes)
        )
