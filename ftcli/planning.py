"""Plan a recipe: resolve its patterns to names of its network, load its dataset, and estimate stage times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ftcli.data.dataset import ImageDataset, sample_sort_key, split_images
from ftcli.data.manifests import is_manifest
from ftcli.datasets import download_dataset
from ftcli.errors import CheckpointError, DataError, RecipeError
from ftcli.models.factory import check_model, create_and_summarize
from ftcli.models.freezing import FrozenNames, resolve_freeze, resolve_lr_mults
from ftcli.models.heads import reset_classifier
from ftcli.models.pretrained.loading import adapt_preprocessing, default_preprocessing
from ftcli.models.summary import ModelSummary, find_head, summarize
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Data, HeadFitStage, Recipe, Stage
from ftcli.results import HeadInfo, Preprocessing, Reporter
from ftcli.runtime import RngKey


@dataclass(frozen=True)
class StagePlan:
    """A gradient-trained stage with its patterns resolved. `lr_mults` maps parameters to lr multipliers;
    `backward_fraction` is the fraction of the network's multiply-adds that gradients flow through."""

    stage: Stage
    frozen_names: FrozenNames
    lr_mults: Mapping[str, float]
    backward_fraction: float

    @property
    def separates_backbone(self) -> bool:
        """True if training computes the frozen backbone separately, provided that the network can be cut."""
        return self.stage.cache != "off" and bool(self.frozen_names.parameters)


@dataclass(frozen=True)
class HeadFitPlan:
    """A stage whose head is fitted by logistic regression, with its patterns resolved. The head is a single linear
    layer on a feature vector."""

    stage: HeadFitStage
    frozen_names: FrozenNames


AnyStagePlan = StagePlan | HeadFitPlan


@dataclass(frozen=True)
class Plan:
    """A recipe with its patterns resolved. `head` describes the network's original head."""

    recipe: Recipe
    preprocessing: Preprocessing
    model_summary: ModelSummary
    head: HeadInfo
    stages: tuple[AnyStagePlan, ...]

    @property
    def head_is_linear(self) -> bool:
        """True if the original head is a Linear layer on one feature vector per image, not a 1 x 1 convolution or a
        layer on a vector at each position."""
        shape = self.model_summary.shapes[self.head.path]
        return self.head.type == "Linear" and shape is not None and len(shape) == 1


def plan_recipe(recipe_file: RecipeFile, preprocessing: Preprocessing | None = None) -> Plan:
    """Resolve a recipe's patterns on its network, on the meta device and without reading images.

    `preprocessing` replaces the recipe's, for checkpoints. Raises RecipeError for an unknown model or an unsupported
    image size, else one with the errors of all stages and the missing data folders.
    """
    recipe = recipe_file.recipe
    name_location = recipe_file.locate("backbone", "name")
    check_model(recipe.backbone.name, name_location)
    weights_location = recipe_file.locate("backbone", "weights")
    chosen = preprocessing or adapt_preprocessing(
        default_preprocessing(recipe.backbone.name, recipe.backbone.weights, weights_location), recipe.data
    )
    size_location = recipe_file.locate("data", "image_size")
    model, summary = create_and_summarize(recipe.backbone.name, chosen.image_size, size_location)
    head = find_head(model, summary, name_location)
    reset_classifier(model, recipe, head.path, num_classes=2)  # its names do not depend on this number
    summary = summarize(model, chosen.image_size, size_location)
    plan = Plan(recipe, chosen, summary, head, ())
    errors: list[str] = []
    stages = tuple(_plan_stage(recipe_file, index, model, plan, errors) for index in range(len(recipe.stages)))
    if errors:
        raise RecipeError(*errors, *_list_missing_data_errors(recipe_file))
    return replace(plan, stages=stages)


def _plan_stage(recipe_file: RecipeFile, index: int, model: nn.Module, plan: Plan, errors: list[str]) -> AnyStagePlan:
    stage, head_path, summary = plan.recipe.stages[index], plan.head.path, plan.model_summary

    def locate(key: str) -> str:
        return recipe_file.locate("stages", index, key)

    if isinstance(stage, HeadFitStage):
        errors += _list_head_fit_errors(plan, locate("fit"), recipe_file.locate("head", "hidden"))
        return HeadFitPlan(stage, resolve_freeze(model, summary, head_path, stage, locate("freeze"), errors))
    frozen_names = resolve_freeze(model, summary, head_path, stage, locate("freeze"), errors)
    lr_mults = resolve_lr_mults(model, head_path, stage.lr_mult, locate("lr_mult"), errors)
    trainable = [name for name, _ in model.named_parameters() if name not in frozen_names.parameters]
    return StagePlan(stage, frozen_names, lr_mults, summary.backward_fraction(trainable))


def _list_head_fit_errors(plan: Plan, location: str, hidden_location: str) -> list[str]:
    alternative = "give the stage epochs and an optimizer instead of fit"
    if widths := plan.recipe.head.hidden:
        return [
            f"{hidden_location}: {list(widths)} adds hidden layers to the head, and fit needs a single linear layer "
            f"({location}); set head.hidden: [], or {alternative}"
        ]
    if not plan.head_is_linear:
        return [
            f"{location}: fit needs a linear layer on a feature vector, and the head of {plan.recipe.backbone.name}, "
            f"{plan.head.path}, is not one ({plan.head.type}); {alternative}, or choose another model"
        ]
    return []


def _list_missing_data_errors(recipe_file: RecipeFile) -> Sequence[str]:
    data, location = recipe_file.recipe.data, recipe_file.locate("data", "root")
    missing = () if data.download else _list_missing_roots(data)
    return tuple(
        f"{location}: {root} does not exist; give the {'manifest' if is_manifest(Path(root)) else 'folder'} of the "
        "images"
        for root in missing
    )


def _list_missing_roots(data: Data) -> Sequence[str]:
    return [root for root in data.roots if not Path(root).exists()]


def load_dataset(
    recipe_file: RecipeFile, reporter: Reporter, previous_splits: Mapping[str, str] | None = None
) -> ImageDataset:
    """Return the images of a recipe with classes and splits, downloading a known dataset if its folder is missing.

    Raises DataError with all errors of the folders and manifests.
    """
    data = recipe_file.recipe.data
    if data.download:
        for root in _list_missing_roots(data):
            download_dataset(data.download, Path(root), reporter)
    return split_images(data, recipe_file.recipe.seed, recipe_file.locate("data", "root"), previous_splits)


def align_classes(dataset: ImageDataset, classes: Sequence[str], location: str) -> ImageDataset:
    """Return the dataset with labels and sample order of a checkpoint's classes, which are matched by name.

    Raises CheckpointError with the differing names unless both have the same classes.
    """
    if set(dataset.classes) != set(classes):
        missing = ", ".join(name for name in classes if name not in dataset.classes) or "none"
        unknown = ", ".join(name for name in dataset.classes if name not in classes) or "none"
        raise CheckpointError(
            f"{location}: was trained on other classes than those of {dataset.source} (missing there: {missing}; "
            f"unknown to the checkpoint: {unknown}); give the data it was trained on, or train again"
        )
    new_labels = {dataset.classes.index(name): label for label, name in enumerate(classes)}
    splits = {
        split: tuple(
            sorted((sample._replace(label=new_labels[sample.label]) for sample in samples), key=sample_sort_key)
        )
        for split, samples in dataset.splits.items()
    }
    return replace(dataset, classes=tuple(classes), splits=splits)


def find_classes(recipe_file: RecipeFile, reporter: Reporter) -> tuple[str, ...]:
    """Return the classes that a recipe names, else those of its images. Downloads nothing.

    Raises DataError if the images do not exist either.
    """
    data = recipe_file.recipe.data
    if data.classes is not None:
        return data.classes
    if missing := _list_missing_roots(data):
        source_type = "manifest" if is_manifest(Path(missing[0])) else "folder"
        remedy = f"run `ftcli data download {data.download}`" if data.download else f"create the {source_type}"
        raise DataError(
            f"{recipe_file.locate('data', 'root')}: {missing[0]} does not exist, so the classes are unknown; {remedy}, "
            "or set data.classes"
        )
    return load_dataset(recipe_file, reporter).classes


def estimate_seconds(plan: AnyStagePlan, num_train: int, num_val: int, forward_seconds: float) -> float:
    """Return the estimated seconds of a stage, given the forward time of one image.

    A backward pass counts as twice the forward pass of the part that gradients flow through; a head fit is one forward
    pass.
    """
    if isinstance(plan, HeadFitPlan):
        return forward_seconds * (num_train + num_val)
    return plan.stage.epochs * forward_seconds * (num_train * (1 + 2 * plan.backward_fraction) + num_val)


def list_augmentation_keys(seed: int, stage: Stage, has_frozen_backbone: bool) -> list[RngKey]:
    """Return the random keys of a stage's views of the training images; epoch e, from 0, uses key e mod their number.

    A stage that trains on the features of a frozen backbone has `cache.views` views, any other one for each epoch.
    """
    num_views = stage.epochs
    if has_frozen_backbone and stage.cache != "off" and stage.cache.views != "all":
        num_views = min(stage.cache.views, stage.epochs)
    return [(seed, stage.name, view + 1) for view in range(num_views)]
