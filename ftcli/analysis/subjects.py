"""Networks with weights, from a model's name, a recipe or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ftcli.data.loading import measure_preprocessing
from ftcli.data.sources import ImageSet
from ftcli.inference.classifier import load_classifier
from ftcli.models.weights import load_pretrained, load_weights, read_preprocessing
from ftcli.models.zoo import adapt_preprocessing
from ftcli.planning import build_model, plan_recipe
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Backbone
from ftcli.recipe.schema.network import is_address
from ftcli.results import Preprocessing, Reporter
from ftcli.runs.folder import find_checkpoint


@dataclass(frozen=True)
class Subject:
    """A network with weights, what it expects of an image, and where its head sits. `classes` are those of a
    checkpoint; `weights` says where the weights came from, and `sha256` is that of their file or a checkpoint's digest.
    `epoch` is that of a checkpoint, 0 before any training."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    head: str
    classes: tuple[str, ...] | None
    weights: str
    sha256: str | None = None
    epoch: int = 0


def load_subject(source: str | Document | Backbone, reporter: Reporter, images: ImageSet | None = None) -> Subject:
    """The network of a recipe before training, of a checkpoint (.pt), of a model's name with its default weights, or
    with those that a backbone says.

    Where a recipe asks for the mean and std of its images, they are measured on `images`; without those the reporter is
    warned and the weights' own are used.

    Raises RecipeError for what is not known, CheckpointError for weights that cannot be had or do not fit.
    """
    if isinstance(source, Document):
        return _load_recipe(source, reporter, images)
    if isinstance(source, str) and source.endswith(".pt"):
        return _load_checkpoint(Path(source), reporter)
    where = "--plot-activations" if isinstance(source, str) else "--weights"
    backbone = Backbone(name=source) if isinstance(source, str) else source
    loaded = load_pretrained(backbone, where, reporter)
    origin = loaded.origin
    return Subject(backbone.name, loaded.model, loaded.preprocessing, loaded.head, None, origin.source, origin.sha256)


def _load_recipe(document: Document, reporter: Reporter, images: ImageSet | None) -> Subject:
    plan, backbone = plan_recipe(document), document.recipe.backbone
    where = document.locate("backbone", "weights")
    if is_address(backbone.weights):  # what it was trained with shows when it has come
        own = read_preprocessing(backbone, where, reporter)
        plan = plan_recipe(document, adapt_preprocessing(own, document.recipe.data))
    model = build_model(plan)
    origin = load_weights(model, backbone, plan.head.path, where, reporter)
    preprocessing = plan.preprocessing
    if document.recipe.data.normalize == "dataset" and images is not None:
        preprocessing = measure_preprocessing(preprocessing, images, document.recipe.data)
    elif document.recipe.data.normalize == "dataset":
        reporter.warn(
            f"{document.locate('data', 'normalize')}: mean and std are measured when training begins; the weights' own "
            "are used here"
        )
    return Subject(backbone.name, model, preprocessing, plan.head.path, None, origin.source, origin.sha256)


def _load_checkpoint(given: Path, reporter: Reporter) -> Subject:
    path, note = find_checkpoint(given)
    if note:
        reporter.say(note)
    classifier, checkpoint, _, plan = load_classifier(path, torch.device("cpu"))
    name = plan.recipe.backbone.name
    return Subject(
        name,
        classifier.model,
        checkpoint.preprocessing,
        plan.head.path,
        checkpoint.classes,
        f"{path} ({checkpoint.stage})",
        checkpoint.digest,
        checkpoint.epoch,
    )
