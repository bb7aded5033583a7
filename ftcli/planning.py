"""What a recipe comes to before anything is trained: what is frozen, where the network is cut, how many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ftcli.data.fetching import fetch
from ftcli.data.manifests import is_manifest
from ftcli.data.sources import ImageSet, order_samples, split_images
from ftcli.errors import CheckpointError, DataError, RecipeError
from ftcli.models.anatomy import Anatomy, examine, find_head
from ftcli.models.freezing import Freezing, find_faults, resolve_freezing, resolve_rates
from ftcli.models.heads import build_head, replace_head
from ftcli.models.sizes import sketch_network
from ftcli.models.zoo import adapt_preprocessing, build_network, check_model, default_preprocessing
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Data, Recipe, SolvedStage, Stage
from ftcli.results import HeadPlace, Preprocessing, Reporter
from ftcli.runtime import derive_seed


@dataclass(frozen=True)
class StagePlan:
    """A stage with the names of the network filled in. `rates` maps parameters to multiples of the learning rate;
    `live_share` is the share of the network's multiply-adds that gradients flow through."""

    stage: Stage
    freezing: Freezing
    rates: Mapping[str, float]
    live_share: float


@dataclass(frozen=True)
class SolvedPlan:
    """A stage that is solved instead of trained, with the names of the network filled in. Its head is a single linear
    layer that reads a vector."""

    stage: SolvedStage
    freezing: Freezing


AnyPlan = StagePlan | SolvedPlan


@dataclass(frozen=True)
class Plan:
    """A recipe that fits its network. `head` is the place of the head, as wide as the backbone left it."""

    recipe: Recipe
    preprocessing: Preprocessing
    anatomy: Anatomy
    head: HeadPlace
    stages: tuple[AnyPlan, ...]

    @property
    def reads_vector(self) -> bool:
        """Whether the last layer is a linear one that reads one vector for an image, and no 1 x 1 convolution, nor one
        that reads a vector at each of many places."""
        shape = self.anatomy.shapes[self.head.path]
        return self.head.type == "Linear" and shape is not None and len(shape) == 1


def plan_recipe(document: Document, preprocessing: Preprocessing | None = None) -> Plan:
    """Fill a recipe's patterns with the names of its network. No memory is taken for weights, no image is read.

    `preprocessing` is given where a checkpoint has settled it. Raises RecipeError with every fault at once: a model,
    module or pattern that is not there, a stage that trains nothing, an input size that the network refuses.
    """
    recipe = document.recipe
    where = document.locate("backbone", "name")
    check_model(recipe.backbone.name, where)
    weights = document.locate("backbone", "weights")
    chosen = preprocessing or adapt_preprocessing(
        default_preprocessing(recipe.backbone.name, recipe.backbone.weights, weights), recipe.data
    )
    size = document.locate("data", "image_size")
    model, anatomy = sketch_network(recipe.backbone.name, chosen.image_size, size)
    head = find_head(model, anatomy, where)
    replace_head(model, head.path, build_head(model.get_submodule(head.path), recipe.head, classes=2))
    anatomy = examine(model, chosen.image_size, size)
    plan = Plan(recipe, chosen, anatomy, head, ())
    stages: list[AnyPlan] = []
    faults: list[str] = []
    for index in range(len(recipe.stages)):
        try:
            stages.append(_plan_stage(document, index, model, plan))
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(*faults, *_missing_data(document))
    return replace(plan, stages=tuple(stages))


def _plan_stage(document: Document, index: int, model: nn.Module, plan: Plan) -> AnyPlan:
    stage, head = plan.recipe.stages[index], plan.head.path

    def locate(key: str) -> str:
        return document.locate("stages", index, key)

    if isinstance(stage, SolvedStage):
        _check_solvable(plan, locate("solver"), document.locate("head", "hidden"))
        return SolvedPlan(stage, resolve_freezing(model, plan.anatomy, head, stage, locate("freeze")))
    if faults := find_faults(model, plan.anatomy, head, stage, locate):
        raise RecipeError(*faults)
    freezing = resolve_freezing(model, plan.anatomy, head, stage, locate("freeze"))
    rates = resolve_rates(model, head, stage.lr_mult, locate("lr_mult"))
    trainable = [name for name, _ in model.named_parameters() if name not in freezing.parameters]
    return StagePlan(stage, freezing, rates, plan.anatomy.measure_share(trainable))


def _check_solvable(plan: Plan, where: str, hidden: str) -> None:
    solver = "a head is solved as a single linear layer"
    if widths := plan.recipe.head.hidden:
        raise RecipeError(
            f"{hidden}: {list(widths)} puts hidden layers in the head, and {solver} ({where}); set head.hidden: [], or "
            "give the stage epochs and an optimizer instead of a solver"
        )
    if not plan.reads_vector:
        raise RecipeError(
            f"{where}: {solver} that reads a vector, and that of {plan.recipe.backbone.name}, {plan.head.path}, does "
            f"not ({plan.head.type}); give the stage epochs and an optimizer instead of a solver, or choose another "
            "model"
        )


def _missing_data(document: Document) -> Sequence[str]:
    data, where = document.recipe.data, document.locate("data", "root")
    missing = () if data.download else _find_missing(data)
    return tuple(
        f"{where}: {root} does not exist; give the "
        f"{'manifest that lists' if is_manifest(Path(root)) else 'folder that holds'} the images"
        for root in missing
    )


def _find_missing(data: Data) -> Sequence[str]:
    return [root for root in data.roots if not Path(root).exists()]


def gather_images(document: Document, reporter: Reporter, held: Mapping[str, str] | None = None) -> ImageSet:
    """The images of a recipe with their classes and splits; a known data set is made first if its folder is missing.

    Raises DataError with every fault of the folders and manifests at once.
    """
    data = document.recipe.data
    if data.download:
        for root in _find_missing(data):
            fetch(data.download, Path(root), reporter)
    return split_images(data, document.recipe.seed, document.locate("data", "root"), held)


def align_classes(images: ImageSet, classes: Sequence[str], where: str) -> ImageSet:
    """The same images, labelled and sorted in the order of a checkpoint's classes.

    Raises CheckpointError that names the classes if they are not the same ones; positions are never compared.
    """
    if set(images.classes) != set(classes):
        lacking = ", ".join(name for name in classes if name not in images.classes) or "none"
        unknown = ", ".join(name for name in images.classes if name not in classes) or "none"
        raise CheckpointError(
            f"{where}: was trained on other classes than {images.source} has: missing there: {lacking}; unknown to the "
            f"checkpoint: {unknown}; give the folder it belongs to, or train anew"
        )
    place = {images.classes.index(name): label for label, name in enumerate(classes)}
    splits = {
        split: tuple(sorted((replace(sample, label=place[sample.label]) for sample in samples), key=order_samples))
        for split, samples in images.splits.items()
    }
    return replace(images, classes=tuple(classes), splits=splits)


def find_classes(document: Document, reporter: Reporter) -> tuple[str, ...]:
    """The classes of a recipe: those it names, or those of its images. Nothing is fetched.

    Raises DataError where there is neither.
    """
    data = document.recipe.data
    if data.classes is not None:
        return data.classes
    if missing := _find_missing(data):
        kind = "manifest" if is_manifest(Path(missing[0])) else "folder"
        remedy = f"run `ftcli data download {data.download}`" if data.download else f"make the {kind}"
        raise DataError(
            f"{document.locate('data', 'root')}: {missing[0]} does not exist, so the classes are unknown; {remedy}, or "
            "name them in data.classes"
        )
    return gather_images(document, reporter).classes


def estimate_seconds(plan: AnyPlan, train: int, val: int, forward: float) -> float:
    """About how long a stage takes on `train` and `val` images when a forward pass takes `forward` seconds an image.

    A backward pass is counted as twice the forward pass of what gradients flow through; a stage that is solved is one
    forward pass.
    """
    if isinstance(plan, SolvedPlan):
        return forward * (train + val)
    return plan.stage.epochs * forward * (train * (1 + 2 * plan.live_share) + val)


def build_model(plan: Plan) -> nn.Module:
    """The recipe's network with random weights, the same for the same seed, and its original head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.recipe.seed, "backbone"))
        return build_network(plan.recipe.backbone.name, False, plan.preprocessing.image_size)


def build_skeleton(plan: Plan, classes: int) -> nn.Module:
    """The recipe's network with a head for `classes` classes, without memory for weights."""
    model = build_network(plan.recipe.backbone.name, True, plan.preprocessing.image_size)
    original = model.get_submodule(plan.head.path)
    replace_head(model, plan.head.path, build_head(original, plan.recipe.head, classes))
    return model


def put_head(model: nn.Module, plan: Plan, classes: int) -> None:
    """Put the recipe's head for `classes` classes in place of the one that is there, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.recipe.seed, "head"))
        replace_head(model, plan.head.path, build_head(model.get_submodule(plan.head.path), plan.recipe.head, classes))
