"""A model's name, a recipe or a checkpoint, each as a recipe with its images, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcli.advice.init import has_batch_norm, to_recipe_name
from ftcli.advice.recipe_text import write_stages
from ftcli.data.dataset import ImageDataset
from ftcli.errors import RecipeError
from ftcli.evaluation.loaded_model import LoadedModel, load_model
from ftcli.models.factory import check_model, create_model
from ftcli.models.pretrained.preprocessing import default_preprocessing
from ftcli.planning import align_classes, load_dataset, plan_recipe
from ftcli.recipe.loading import RecipeFile, RecipeSource, backbone_from_options, recipe_from_dict
from ftcli.recipe.parsing import KeyPath, parse_yaml
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runs.run_dir import find_checkpoint


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """What is looked at: the `source` as the user named it, with `document` where it is a recipe. What ends in .pt is a
    checkpoint, and anything else the name of a model, with which `weights`, `match` and `sha256` go as in a recipe's
    backbone. `data` and `image_size` stand in for the recipe's own."""

    source: str
    recipe_file: RecipeFile | None = None
    weights: str | None = None
    match: str | None = None
    sha256: str | None = None
    data: Path | None = None
    image_size: int | None = None

    @property
    def model_name(self) -> str | None:
        """The name of a model, where it is one that is looked at."""
        return None if self.recipe_file or self.source.endswith(".pt") else self.source

    @property
    def backbone(self) -> Backbone | None:
        """The model with its weights. Raises RecipeError for options that do not go together."""
        chosen = backbone_from_options(self.model_name, self.weights, self.match, self.sha256)
        return chosen or (Backbone(name=self.model_name) if self.model_name else None)


@dataclass(frozen=True)
class ExtractionSource:
    """A recipe and its network. That of a checkpoint, which was read from `path`, is whole; that of a recipe has no
    values before `load_source_model`.

    `held` tells the split that images had in the training of a checkpoint.
    """

    recipe_file: RecipeFile
    loaded: LoadedModel
    checkpoint_path: Path | None = None
    previous_splits: Mapping[str, str] = field(default_factory=dict)


def open_source(source_args: SourceArgs, reporter: Reporter) -> ExtractionSource:
    """Raises RecipeError for what is not known or does not fit, CheckpointError for a checkpoint that cannot be used.
    Nothing is downloaded."""
    backbone = source_args.backbone
    if backbone is not None:
        check_model(backbone.name, "extract")
        default_preprocessing(backbone.name, backbone.weights, "--weights")  # are there such weights?
        recipe_file = _draft_recipe(source_args, backbone, num_train=0)
    elif source_args.recipe_file is not None:
        recipe_file = _apply_options(source_args.recipe_file, source_args)
    else:
        return _open_checkpoint(source_args, reporter)
    plan = plan_recipe(recipe_file)
    name = plan.recipe.backbone.name
    model = create_model(name, True, plan.preprocessing.image_size)
    return ExtractionSource(recipe_file, LoadedModel(name, model, plan.preprocessing, plan.head.path, None, ""))


def load_source_dataset(
    source: ExtractionSource, source_args: SourceArgs, reporter: Reporter
) -> tuple[ExtractionSource, ImageDataset]:
    """The images of a source, in the splits that they have or had in training; and the source again, whose recipe has
    the stages that suit so many images where a model was named.

    Raises DataError for faulty images, CheckpointError for classes that are not the checkpoint's.
    """
    dataset = load_dataset(source.recipe_file, reporter, source.previous_splits or None)
    if source.loaded.classes is not None:
        return source, align_classes(dataset, source.loaded.classes, str(source.checkpoint_path))
    backbone = source_args.backbone
    if backbone is None:
        return source, dataset
    recipe_file = _draft_recipe(
        source_args, backbone, len(dataset.splits["train"]), has_batch_norm(source.loaded.model)
    )
    return replace(source, recipe_file=recipe_file), dataset


def load_source_model(source: ExtractionSource, dataset: ImageDataset, reporter: Reporter) -> LoadedModel:
    """The network with its weights. Raises as `load_model` does."""
    return load_model(source.recipe_file, reporter, dataset) if source.checkpoint_path is None else source.loaded


def _open_checkpoint(source_args: SourceArgs, reporter: Reporter) -> ExtractionSource:
    path, note = find_checkpoint(Path(source_args.source))
    if note:
        reporter.info(note)
    checkpoint = read_checkpoint(path)
    recipe_file = _apply_options(recipe_from_dict(checkpoint.recipe, str(path)), source_args)
    previous_splits = checkpoint.splits_by_path() if source_args.data is None else checkpoint.splits_by_any_path()
    return ExtractionSource(recipe_file, load_model(str(path), reporter), path, previous_splits)


def _draft_recipe(source_args: SourceArgs, backbone: Backbone, num_train: int, batch_norm: bool = False) -> RecipeFile:
    """The recipe of a model's name: a linear head, and the stages that suit so many training images."""
    lines = ["stages:", *write_stages(num_train, backbone.weights != "none", batch_norm)]
    recipe_dict = {
        "name": to_recipe_name(backbone.name),
        "data": {"root": str(source_args.data), "image_size": source_args.image_size},
        "backbone": backbone.model_dump(mode="json"),
        "stages": parse_yaml("\n".join(lines), "extract").data["stages"],
    }
    recipe = recipe_from_dict(recipe_dict, "extract").recipe
    return RecipeFile(recipe, RecipeSource("extract", overrides=_collect_overrides(source_args)))


def _apply_options(recipe_file: RecipeFile, source_args: SourceArgs) -> RecipeFile:
    """The recipe with what the command line says instead."""
    recipe_dict: dict[str, Any] = recipe_file.recipe.model_dump(mode="json")
    if source_args.data is not None:
        recipe_dict["data"] |= {"root": str(source_args.data), "download": None}
        if source_args.recipe_file is None:  # a checkpoint's classes are matched by name, whatever their order here
            recipe_dict["data"]["classes"] = None
    if source_args.image_size is not None:
        recipe_dict["data"]["image_size"] = source_args.image_size
        if (resize_size := recipe_dict["data"]["resize_size"]) is not None and resize_size < source_args.image_size:
            raise RecipeError(
                f"--image-size {source_args.image_size}: {recipe_file.source.name} resizes images to {resize_size} pixels before it "
                f"cuts them (data.resize_size); give at most {resize_size}, or a larger resize_size in the recipe"
            )
    recipe = recipe_from_dict(recipe_dict, recipe_file.source.name).recipe
    overrides = {**recipe_file.source.overrides, **_collect_overrides(source_args)}
    return replace(recipe_file, recipe=recipe, source=replace(recipe_file.source, overrides=overrides))


def _collect_overrides(source_args: SourceArgs) -> dict[KeyPath, str]:
    """The options that values of the recipe come from, by the place of the value."""
    options: dict[KeyPath, str] = {}
    if source_args.data is not None:
        options["data", "root"] = f"--data {source_args.data}"
    if source_args.image_size is not None:
        options["data", "image_size"] = f"--image-size {source_args.image_size}"
    if source_args.weights is not None:
        options["backbone", "weights"] = f"--weights {source_args.weights}"
    return options
