"""Sources of features: a model, recipe or checkpoint as a recipe with images and a network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcli.data.dataset import ImageDataset
from ftcli.errors import RecipeError
from ftcli.evaluation.classifier import LoadedModel, load_model
from ftcli.models.factory import check_model, create_model
from ftcli.models.freezing import has_batch_norm
from ftcli.models.pretrained.loading import default_preprocessing
from ftcli.planning import align_classes, load_dataset, plan_recipe
from ftcli.recipe.drafting import to_recipe_name, write_stages
from ftcli.recipe.loading import RecipeFile, RecipeSource, backbone_from_options, recipe_from_dict
from ftcli.recipe.parsing import KeyPath, parse_yaml
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runs.run_dir import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """The source of features as the user named it: a recipe (`recipe_file`), a checkpoint (.pt), or else a model.

    `weights`, `match` and `sha256` belong to a model, as in a recipe's backbone. `data` and `image_size` override the
    recipe's.
    """

    source: str
    recipe_file: RecipeFile | None = None
    weights: str | None = None
    match: str | None = None
    sha256: str | None = None
    data: Path | None = None
    image_size: int | None = None

    @property
    def model_name(self) -> str | None:
        """The name of the model, unless the source is a recipe or checkpoint."""
        return None if self.recipe_file or self.source.endswith(".pt") else self.source

    @property
    def backbone(self) -> Backbone | None:
        """The model with its weights. Raises RecipeError for options that cannot be combined."""
        chosen = backbone_from_options(self.model_name, self.weights, self.match, self.sha256)
        return chosen or (Backbone(name=self.model_name) if self.model_name else None)


@dataclass(frozen=True)
class ExtractionSource:
    """A recipe and its network, which is on the meta device until `load_source_model`, except for a checkpoint's.

    `previous_splits` maps image paths to their splits in the training of a checkpoint.
    """

    recipe_file: RecipeFile
    loaded: LoadedModel
    checkpoint_path: Path | None = None
    previous_splits: Mapping[str, str] = field(default_factory=dict)


def open_source(source_args: SourceArgs, reporter: Reporter) -> ExtractionSource:
    """Return the recipe and network of a source without downloading anything.

    Raises RecipeError for an unknown model or invalid options, CheckpointError for a checkpoint that cannot be used.
    """
    backbone = source_args.backbone
    if backbone is not None:
        check_model(backbone.name, "extract")
        default_preprocessing(backbone.name, backbone.weights, "--weights")  # raises for unknown weights
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
    """Return the images of a source in their splits, and the source: a model's recipe gets stages for their number.

    The images of a checkpoint are in the splits of its training. Raises DataError for invalid data, CheckpointError for
    classes that are not the checkpoint's.
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
    """Return the network with its weights. Raises what `load_model` raises."""
    return load_model(source.recipe_file, reporter, dataset) if source.checkpoint_path is None else source.loaded


def _open_checkpoint(source_args: SourceArgs, reporter: Reporter) -> ExtractionSource:
    path, note = find_checkpoint(Path(source_args.source))
    if note:
        logger.info(note)
    checkpoint = read_checkpoint(path)
    recipe_file = _apply_options(recipe_from_dict(checkpoint.recipe, str(path)), source_args)
    previous_splits = checkpoint.splits_by_path() if source_args.data is None else checkpoint.splits_by_any_path()
    return ExtractionSource(recipe_file, load_model(str(path), reporter), path, previous_splits)


def _draft_recipe(source_args: SourceArgs, backbone: Backbone, num_train: int, batch_norm: bool = False) -> RecipeFile:
    """Return a recipe for a model: a linear head, and stages for the number of training images."""
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
    """Return the recipe with the values of command-line options."""
    recipe_dict: dict[str, Any] = recipe_file.recipe.model_dump(mode="json")
    if source_args.data is not None:
        recipe_dict["data"] |= {"root": str(source_args.data), "download": None}
        if source_args.recipe_file is None:  # the classes of a checkpoint are matched by name
            recipe_dict["data"]["classes"] = None
    if source_args.image_size is not None:
        recipe_dict["data"]["image_size"] = source_args.image_size
        if (resize_size := recipe_dict["data"]["resize_size"]) is not None and resize_size < source_args.image_size:
            raise RecipeError(
                f"--image-size {source_args.image_size}: {recipe_file.source.name} resizes images to {resize_size} "
                f"pixels (data.resize_size); give at most {resize_size}, or set a larger data.resize_size"
            )
    recipe = recipe_from_dict(recipe_dict, recipe_file.source.name).recipe
    overrides = {**recipe_file.source.overrides, **_collect_overrides(source_args)}
    return replace(recipe_file, recipe=recipe, source=replace(recipe_file.source, overrides=overrides))


def _collect_overrides(source_args: SourceArgs) -> dict[KeyPath, str]:
    """Return the command-line options that set recipe values, by key path."""
    options: dict[KeyPath, str] = {}
    if source_args.data is not None:
        options["data", "root"] = f"--data {source_args.data}"
    if source_args.image_size is not None:
        options["data", "image_size"] = f"--image-size {source_args.image_size}"
    if source_args.weights is not None:
        options["backbone", "weights"] = f"--weights {source_args.weights}"
    return options
