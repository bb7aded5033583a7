"""The setup of a run: plan, dataset, classifier and checkpoints, complete and checked before anything is written."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import torch
import torchvision
from torch import nn

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, choose_num_workers, measure_preprocessing
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.evaluation.classifier import Classifier, model_from_checkpoint
from ftcli.models.factory import build_model
from ftcli.models.heads import reset_classifier
from ftcli.models.pretrained.loading import adapt_preprocessing, default_preprocessing, load_weights, read_preprocessing
from ftcli.models.pretrained_cfg import is_weights_name
from ftcli.planning import AnyStagePlan, Plan, align_classes, load_dataset, plan_recipe
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema.network import is_url
from ftcli.results import Preprocessing, Reporter, format_count
from ftcli.runs.checkpoint import Checkpoint
from ftcli.training.checkpointing import CheckpointManager
from ftcli.training.compile import check_compiler
from ftcli.training.precision import resolve_classifier_precision
from ftcli.training.resume import StartPoint
from ftcli.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSetup:
    """The plan, data, model and checkpoints of a run. `remaining_stages` are not trained yet."""

    start_point: StartPoint
    plan: Plan
    remaining_stages: tuple[AnyStagePlan, ...]
    dataset: ImageDataset
    classifier: Classifier
    checkpointer: CheckpointManager

    def ends_run(self, plan: AnyStagePlan) -> bool:
        """Return whether the run is finished after this stage: no other stage and no test follows."""
        return plan is self.remaining_stages[-1] and "test" not in self.dataset.splits

    @cached_property
    def mean_sample_weight(self) -> float | None:
        """The mean weight of the training images; None if all weigh the same, so that weights have no effect."""
        sample_weights = [sample.weight for sample in self.dataset.splits["train"]]
        return None if min(sample_weights) == max(sample_weights) else math.fsum(sample_weights) / len(sample_weights)


def setup_run(start_point: StartPoint, device: torch.device, reporter: Reporter) -> RunSetup:
    """Plan a run, load its dataset, and build its model with its weights.

    Raises RecipeError, DataError and CheckpointError, in this order. Writes nothing, except for the download of a
    known dataset.
    """
    plan, dataset = _plan_run(start_point, reporter)
    model, origin = _load_model(start_point, plan, dataset, reporter)
    recipe, checkpoint = plan.recipe, start_point.checkpoint
    classifier = Classifier.create(model, plan.preprocessing, dataset.classes, device, recipe.precision)
    if recipe.compile:
        check_compiler(start_point.recipe_file.locate("compile"), device)
    known_precisions = checkpoint.precisions if checkpoint else {}
    classifier = resolve_classifier_precision(
        classifier, recipe.backbone.name, recipe.data.batch_size, known_precisions
    )
    checkpoint_template = Checkpoint(
        kind="best",
        recipe=recipe.model_dump(mode="json"),
        classes=dataset.classes,
        preprocessing=plan.preprocessing,
        head_path=plan.head.path,
        stage="",
        epoch=0,
        metrics={},
        origin=origin,
        splits={split: tuple(sample.path for sample in samples) for split, samples in dataset.splits.items()},
        state={},
        precisions={**known_precisions, device.type: classifier.precision} if recipe.precision == "auto" else {},
    )
    checkpointer = CheckpointManager(
        start_point.run_dir, checkpoint_template, start_point.stage_names, fingerprint=dataset.fingerprint()
    )
    if start_point.saved_progress is not None:
        checkpointer.load_progress(start_point.saved_progress)
    checkpointer.start_times.append(utc_now())
    remaining_names = start_point.stage_names[len(checkpointer.results) :]
    stages_by_name = {stage.stage.name: stage for stage in plan.stages}
    remaining_stages = tuple(stages_by_name[name] for name in remaining_names)
    return RunSetup(start_point, plan, remaining_stages, dataset, classifier, checkpointer)


def _plan_run(start_point: StartPoint, reporter: Reporter) -> tuple[Plan, ImageDataset]:
    """Plan the recipe and load its dataset, with the classes and splits of the checkpoint if there is one."""
    recipe_file, checkpoint = start_point.recipe_file, start_point.checkpoint
    plan = plan_recipe(recipe_file, _resolve_preprocessing(start_point, reporter))
    dataset = load_dataset(recipe_file, reporter, checkpoint.splits_by_any_path() if checkpoint else None)
    if checkpoint is not None:
        dataset = align_classes(dataset, checkpoint.classes, str(start_point.checkpoint_path))
        if start_point.is_exact_resume:
            dataset = _restrict_to_checkpoint_images(dataset, checkpoint, start_point)
    elif is_url(recipe_file.recipe.backbone.weights):  # the preprocessing is known only after the download
        plan = plan_recipe(recipe_file, _read_weights_preprocessing(recipe_file, reporter))
    if recipe_file.recipe.data.normalize == "dataset" and not _uses_checkpoint_normalization(start_point):
        measured_preprocessing = measure_preprocessing(plan.preprocessing, dataset, recipe_file.recipe.data)
        plan = dataclasses.replace(plan, preprocessing=measured_preprocessing)
    return plan, dataset


def _load_model(
    start_point: StartPoint, plan: Plan, dataset: ImageDataset, reporter: Reporter
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the model with the weights of the checkpoint or of the recipe, on the CPU, and the origin of these."""
    checkpoint = start_point.checkpoint
    if checkpoint is not None:
        image_size, location = plan.preprocessing.image_size, str(start_point.checkpoint_path)
        model = model_from_checkpoint(checkpoint, plan.recipe, plan.head.path, image_size, location)
        if start_point.is_exact_resume:
            return model, dict(checkpoint.origin)
        return model, {**checkpoint.origin, "checkpoint": checkpoint.digest}
    model = build_model(plan.recipe, plan.preprocessing.image_size)
    location = start_point.recipe_file.locate("backbone", "weights")
    weights_info = load_weights(model, plan.recipe.backbone, plan.head.path, location, reporter)
    reset_classifier(model, plan.recipe, plan.head.path, len(dataset.classes))
    return model, {"weights": weights_info.source, "weights_sha256": weights_info.sha256, "checkpoint": None}


def _read_weights_preprocessing(recipe_file: RecipeFile, reporter: Reporter) -> Preprocessing:
    """Read the preprocessing of the weights, downloading their file if necessary, and adapt it to the recipe."""
    recipe = recipe_file.recipe
    weights_preprocessing = read_preprocessing(recipe.backbone, recipe_file.locate("backbone", "weights"), reporter)
    return adapt_preprocessing(weights_preprocessing, recipe.data)


def _resolve_preprocessing(start_point: StartPoint, reporter: Reporter) -> Preprocessing | None:
    """Return the checkpoint's preprocessing: unchanged for an exact resume, else with the sizes that the recipe sets.

    The weights file that the checkpoint was trained from is read only if the recipe sets `normalize: pretrained` and
    the checkpoint's recipe did not. None without a checkpoint.
    """
    checkpoint, recipe = start_point.checkpoint, start_point.recipe_file.recipe
    if checkpoint is None:
        return None
    if start_point.is_exact_resume:
        return checkpoint.preprocessing
    weights = recipe.backbone.weights
    if weights == "none" or is_weights_name(weights):
        preprocessing = adapt_preprocessing(default_preprocessing(recipe.backbone.name, weights), recipe.data)
    elif recipe.data.normalize == "pretrained" and not _uses_checkpoint_normalization(start_point):
        preprocessing = _read_weights_preprocessing(start_point.recipe_file, reporter)
    else:
        preprocessing = adapt_preprocessing(checkpoint.preprocessing, recipe.data)
    if _uses_checkpoint_normalization(start_point):
        preprocessing = dataclasses.replace(
            preprocessing, mean=checkpoint.preprocessing.mean, std=checkpoint.preprocessing.std
        )
    return dataclasses.replace(preprocessing, interpolation=checkpoint.preprocessing.interpolation)


def _uses_checkpoint_normalization(start_point: StartPoint) -> bool:
    """Return whether mean and std are the checkpoint's: on exact resume, or if both recipes set the same normalize."""
    if start_point.checkpoint is None:
        return False
    checkpoint_normalize = start_point.checkpoint.recipe["data"]["normalize"]
    recipe_normalize: Any = start_point.recipe_file.recipe.model_dump(mode="json")["data"]["normalize"]
    return start_point.is_exact_resume or bool(checkpoint_normalize == recipe_normalize)


def _restrict_to_checkpoint_images(
    dataset: ImageDataset, checkpoint: Checkpoint, start_point: StartPoint
) -> ImageDataset:
    """Return the dataset with exactly the images that the run started with. Raises DataError if some are missing."""
    checkpoint_splits = checkpoint.splits_by_path()
    current_paths = {sample.path for samples in dataset.splits.values() for sample in samples}
    missing_paths = [path for path in checkpoint_splits if path not in current_paths]
    if missing_paths:
        raise DataError(
            f"{dataset.source}: {len(missing_paths)} of {format_count(len(checkpoint_splits), 'image')} that the run "
            f"started with do not exist; the first: {missing_paths[0]}; restore them, or add --stage to start a new "
            f"run from the weights of {start_point.checkpoint_path}"
        )
    if num_added := len(current_paths - checkpoint_splits.keys()):
        logger.warning(
            f"{dataset.source}: {format_count(num_added, 'image')} added after the run started, which it does not use"
        )
    restricted_splits = {
        split: tuple(sample for sample in samples if sample.path in checkpoint_splits)
        for split, samples in dataset.splits.items()
    }
    dataset = dataclasses.replace(dataset, splits=restricted_splits)
    assert checkpoint.progress is not None
    if dataset.fingerprint() != checkpoint.progress["fingerprint"]:
        logger.warning(
            f"{dataset.source}: images changed after the run started; the result will differ from an uninterrupted run"
        )
    return dataset


def choose_transform(setup: RunSetup, split: str) -> ImageTransform:
    """Return the transform of a split: augmented for training, else that of evaluation."""
    if split == "train":
        return build_train_transform(setup.plan.preprocessing, setup.plan.recipe.data.augment)
    return build_eval_transform(setup.plan.preprocessing)


def open_loader(setup: RunSetup, split: str, pixel_cache: PixelCache | None = None) -> ImageLoader:
    """Open a loader of a split, augmented for training; its worker processes end with its context.

    On a GPU, transforms of whole batches are deferred to it.
    """
    transform = choose_transform(setup, split)
    if defers_to_device(setup.classifier.device):
        transform = transform.defer_to_device()
    return ImageLoader(
        setup.dataset.splits[split],
        transform,
        setup.plan.recipe.data.batch_size,
        create_loader_config(setup, pixel_cache),
    )


def create_loader_config(setup: RunSetup, pixel_cache: PixelCache | None = None) -> LoaderConfig:
    """Return the loader settings of a run, with the number of workers that suits its device and images."""
    data, device = setup.plan.recipe.data, setup.classifier.device
    num_workers = choose_num_workers(data.num_workers, device, setup.dataset)
    return LoaderConfig(
        setup.dataset.root,
        data.on_corrupt_image,
        num_workers,
        device.type == "cuda",
        pixel_cache,
        setup.start_point.rehash,
    )


def defers_to_device(device: torch.device) -> bool:
    """Return whether transforms of whole batches are computed on the device."""
    return device.type != "cpu"


def run_metadata(setup: RunSetup, end_time: str | None = None) -> dict[str, Any]:
    """Return the content of run.json: versions, machine, command, data and times."""
    data, checkpoint_template = setup.plan.recipe.data, setup.checkpointer.checkpoint_template
    return {
        "ftcli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "device": str(setup.classifier.device),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "seed": setup.plan.recipe.seed,
        "origin": dict(checkpoint_template.origin),
        "data": {
            "root": data.root,
            "fingerprint": setup.checkpointer.fingerprint,
            "classes": list(setup.dataset.classes),
            "splits": {split: list(paths) for split, paths in checkpoint_template.splits.items()},
        },
        "started": setup.checkpointer.start_times[0],
        "resumed": setup.checkpointer.start_times[1:],
        "ended": end_time,
    }


def utc_now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
