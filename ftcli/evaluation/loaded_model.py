"""Models with weights, loaded from a model name, a recipe or a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import measure_preprocessing
from ftcli.evaluation.classifier import load_classifier
from ftcli.models.factory import build_model
from ftcli.models.pretrained.loading import load_pretrained, load_weights, read_preprocessing
from ftcli.models.pretrained.preprocessing import adapt_preprocessing
from ftcli.planning import plan_recipe
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Backbone
from ftcli.recipe.schema.network import is_url
from ftcli.results import Preprocessing, Reporter
from ftcli.runs.run_dir import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with weights, its preprocessing and the module path of its head.

    `classes` and `epoch` are those of a checkpoint, otherwise None and 0. `weights` names the source of the weights,
    `sha256` is the hash of their file or the digest of the checkpoint.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    head: str
    classes: tuple[str, ...] | None
    weights: str
    sha256: str | None = None
    epoch: int = 0


def load_model(
    source: str | RecipeFile | Backbone, reporter: Reporter, dataset: ImageDataset | None = None
) -> LoadedModel:
    """Load the model of a recipe before training, of a checkpoint (.pt), of a model name with its default weights, or
    of a backbone.

    With `normalize: dataset`, mean and std are measured on `dataset`; without one a warning is logged and those of
    the pretrained weights are used. Raises RecipeError for unknown names, CheckpointError for weights that cannot be
    loaded.
    """
    if isinstance(source, RecipeFile):
        return _load_recipe(source, reporter, dataset)
    if isinstance(source, str) and source.endswith(".pt"):
        return _load_checkpoint(Path(source))
    location = "--plot-activations" if isinstance(source, str) else "--weights"
    backbone = Backbone(name=source) if isinstance(source, str) else source
    pretrained = load_pretrained(backbone, location, reporter)
    origin = pretrained.weights_info
    return LoadedModel(
        backbone.name, pretrained.model, pretrained.preprocessing, pretrained.head, None, origin.source, origin.sha256
    )


def _load_recipe(recipe_file: RecipeFile, reporter: Reporter, dataset: ImageDataset | None) -> LoadedModel:
    plan, backbone = plan_recipe(recipe_file), recipe_file.recipe.backbone
    location = recipe_file.locate("backbone", "weights")
    if is_url(backbone.weights):  # its preprocessing is known only after the download
        pretrained_preprocessing = read_preprocessing(backbone, location, reporter)
        plan = plan_recipe(recipe_file, adapt_preprocessing(pretrained_preprocessing, recipe_file.recipe.data))
    model = build_model(plan.recipe, plan.preprocessing.image_size)
    origin = load_weights(model, backbone, plan.head.path, location, reporter)
    preprocessing = plan.preprocessing
    if recipe_file.recipe.data.normalize == "dataset" and dataset is not None:
        preprocessing = measure_preprocessing(preprocessing, dataset, recipe_file.recipe.data)
    elif recipe_file.recipe.data.normalize == "dataset":
        logger.warning(
            f"{recipe_file.locate('data', 'normalize')}: mean and std are measured when training starts; those of the "
            "pretrained weights are used here"
        )
    return LoadedModel(backbone.name, model, preprocessing, plan.head.path, None, origin.source, origin.sha256)


def _load_checkpoint(argument: Path) -> LoadedModel:
    path, note = find_checkpoint(argument)
    if note:
        logger.info(note)
    loaded = load_classifier(path, torch.device("cpu"))
    checkpoint = loaded.checkpoint
    return LoadedModel(
        loaded.recipe_file.recipe.backbone.name,
        loaded.classifier.model,
        checkpoint.preprocessing,
        checkpoint.head_path,
        checkpoint.classes,
        f"{path} ({checkpoint.stage})",
        checkpoint.digest,
        checkpoint.epoch,
    )
