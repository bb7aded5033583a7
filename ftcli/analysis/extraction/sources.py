"""A model's name, a recipe or a checkpoint, each as a recipe with its images, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcli.analysis.drafting.draft import fit_name, has_batch_norm
from ftcli.analysis.drafting.proposal import write_stages
from ftcli.analysis.subjects import Subject, load_subject
from ftcli.data.sources import ImageSet
from ftcli.errors import RecipeError
from ftcli.models.zoo import build_network, check_model, default_preprocessing
from ftcli.planning import align_classes, gather_images, plan_recipe
from ftcli.recipe.loading import Document, choose_weights, revive_recipe
from ftcli.recipe.parsing import Place, parse_yaml
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runs.folder import find_checkpoint


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is looked at: the `source` as the user named it, with `document` where it is a recipe. What ends in .pt is a
    checkpoint, and anything else the name of a model, with which `weights`, `match` and `sha256` go as in a recipe's
    backbone. `data` and `image_size` stand in for the recipe's own."""

    source: str
    document: Document | None = None
    weights: str | None = None
    match: str | None = None
    sha256: str | None = None
    data: Path | None = None
    image_size: int | None = None

    @property
    def model(self) -> str | None:
        """The name of a model, where it is one that is looked at."""
        return None if self.document or self.source.endswith(".pt") else self.source

    @property
    def backbone(self) -> Backbone | None:
        """The model with its weights. Raises RecipeError for options that do not go together."""
        chosen = choose_weights(self.model, self.weights, self.match, self.sha256)
        return chosen or (Backbone(name=self.model) if self.model else None)


@dataclass(frozen=True)
class Source:
    """A recipe and its network. That of a checkpoint, which was read from `path`, is whole; that of a recipe has no
    values before `load_source`.

    `held` tells the split that images had in the training of a checkpoint.
    """

    document: Document
    subject: Subject
    path: Path | None = None
    held: Mapping[str, str] = field(default_factory=dict)


def open_source(target: Target, reporter: Reporter) -> Source:
    """Raises RecipeError for what is not known or does not fit, CheckpointError for a checkpoint that cannot be used.
    Nothing is downloaded."""
    backbone = target.backbone
    if backbone is not None:
        check_model(backbone.name, "extract")
        default_preprocessing(backbone.name, backbone.weights, "--weights")  # are there such weights?
        document = _draft_document(target, backbone, train=0)
    elif target.document is not None:
        document = _revise(target.document, target)
    else:
        return _open_checkpoint(target, reporter)
    plan = plan_recipe(document)
    name = plan.recipe.backbone.name
    model = build_network(name, True, plan.preprocessing.image_size)
    return Source(document, Subject(name, model, plan.preprocessing, plan.head.path, None, ""))


def find_images(source: Source, target: Target, reporter: Reporter) -> tuple[Source, ImageSet]:
    """The images of a source, in the splits that they have or had in training; and the source again, whose recipe has
    the stages that suit so many images where a model was named.

    Raises DataError for faulty images, CheckpointError for classes that are not the checkpoint's.
    """
    images = gather_images(source.document, reporter, source.held or None)
    if source.subject.classes is not None:
        return source, align_classes(images, source.subject.classes, str(source.path))
    backbone = target.backbone
    if backbone is None:
        return source, images
    document = _draft_document(target, backbone, len(images.splits["train"]), has_batch_norm(source.subject.model))
    return replace(source, document=document), images


def load_source(source: Source, images: ImageSet, reporter: Reporter) -> Subject:
    """The network with its weights. Raises as `load_subject` does."""
    return load_subject(source.document, reporter, images) if source.path is None else source.subject


def _open_checkpoint(target: Target, reporter: Reporter) -> Source:
    path, note = find_checkpoint(Path(target.source))
    if note:
        reporter.say(note)
    checkpoint = read_checkpoint(path)
    document = _revise(revive_recipe(checkpoint.recipe, str(path)), target)
    held = checkpoint.splits_by_path() if target.data is None else checkpoint.splits_by_place()
    return Source(document, load_subject(str(path), reporter), path, held)


def _draft_document(target: Target, backbone: Backbone, train: int, batch_norm: bool = False) -> Document:
    """The recipe of a model's name: a linear head, and the stages that suit so many training images."""
    lines = ["stages:", *write_stages(train, backbone.weights != "none", batch_norm)]
    plain = {
        "name": fit_name(backbone.name),
        "data": {"root": str(target.data), "image_size": target.image_size},
        "backbone": backbone.model_dump(mode="json"),
        "stages": parse_yaml("\n".join(lines), "extract").data["stages"],
    }
    return replace(revive_recipe(plain, "extract"), overrides=_list_options(target))


def _revise(document: Document, target: Target) -> Document:
    """The recipe with what the command line says instead."""
    plain: dict[str, Any] = document.recipe.model_dump(mode="json")
    if target.data is not None:
        plain["data"] |= {"root": str(target.data), "download": None}
        if target.document is None:  # a checkpoint's classes are matched by name, whatever their order here
            plain["data"]["classes"] = None
    if target.image_size is not None:
        plain["data"]["image_size"] = target.image_size
        if (resized := plain["data"]["resize_size"]) is not None and resized < target.image_size:
            raise RecipeError(
                f"--image-size {target.image_size}: {document.source} resizes images to {resized} pixels before it "
                f"cuts them (data.resize_size); give at most {resized}, or a larger resize_size in the recipe"
            )
    recipe = revive_recipe(plain, document.source).recipe
    return replace(document, recipe=recipe, overrides={**document.overrides, **_list_options(target)})


def _list_options(target: Target) -> dict[Place, str]:
    """The options that values of the recipe come from, by the place of the value."""
    options: dict[Place, str] = {}
    if target.data is not None:
        options["data", "root"] = f"--data {target.data}"
    if target.image_size is not None:
        options["data", "image_size"] = f"--image-size {target.image_size}"
    if target.weights is not None:
        options["backbone", "weights"] = f"--weights {target.weights}"
    return options
