"""Everything that a run needs, gathered and checked before its folder is made."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import torchvision

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, default_num_workers, measure_preprocessing
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.evaluation.classifier import Classifier, model_from_checkpoint
from ftcli.models.factory import build_model
from ftcli.models.heads import reset_classifier
from ftcli.models.pretrained.loading import load_weights, read_preprocessing
from ftcli.models.pretrained.preprocessing import adapt_preprocessing, default_preprocessing
from ftcli.models.pretrained_cfg import is_weights_name
from ftcli.planning import AnyStagePlan, Plan, align_classes, load_dataset, plan_recipe
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema.network import is_url
from ftcli.results import Preprocessing, Reporter
from ftcli.runs.checkpoint import Checkpoint
from ftcli.training.checkpointing import CheckpointManager, history_from_dict, results_from_dict
from ftcli.training.resume import StartPoint
from ftcli.version import __version__


@dataclass(frozen=True)
class RunSetup:
    """A beginning whose network, images and plan are there and fit together. `stages` are those left to train."""

    start_point: StartPoint
    plan: Plan
    remaining_stages: tuple[AnyStagePlan, ...]
    dataset: ImageDataset
    classifier: Classifier
    checkpointer: CheckpointManager

    @property
    def saved_progress(self) -> Mapping[str, Any] | None:
        """What last.pt holds, where the run goes on exactly."""
        checkpoint = self.start_point.checkpoint
        return checkpoint.progress if checkpoint and self.start_point.is_exact_resume else None


def setup_run(start_point: StartPoint, device: torch.device, reporter: Reporter) -> RunSetup:
    """Plan, find the images, and build the network with its weights.

    Raises RecipeError, DataError and CheckpointError, in this order; nothing was written then, but for a known data
    set that was fetched.
    """
    recipe_file, checkpoint = start_point.recipe_file, start_point.checkpoint
    plan = plan_recipe(recipe_file, _resolve_preprocessing(start_point, reporter))
    dataset = load_dataset(recipe_file, reporter, checkpoint.splits_by_any_path() if checkpoint else None)
    if checkpoint is not None:
        dataset = align_classes(dataset, checkpoint.classes, str(start_point.checkpoint_path))
        if start_point.is_exact_resume:
            dataset = _restrict_to_checkpoint_images(dataset, checkpoint, start_point, reporter)
    if checkpoint is None and is_url(recipe_file.recipe.backbone.weights):  # what it is shows when it has come
        plan = plan_recipe(recipe_file, _read_weights_preprocessing(recipe_file, reporter))
    if recipe_file.recipe.data.normalize == "dataset" and not _uses_checkpoint_normalization(start_point):
        measured_preprocessing = measure_preprocessing(plan.preprocessing, dataset, recipe_file.recipe.data)
        plan = dataclasses.replace(plan, preprocessing=measured_preprocessing)
    if checkpoint is None:
        model = build_model(plan.recipe, plan.preprocessing.image_size)
        weights_info = load_weights(
            model, plan.recipe.backbone, plan.head.path, recipe_file.locate("backbone", "weights"), reporter
        )
        reset_classifier(model, plan.recipe, plan.head.path, len(dataset.classes))
        provenance = {"weights": weights_info.source, "weights_sha256": weights_info.sha256, "checkpoint": None}
    else:
        image_size, location = plan.preprocessing.image_size, str(start_point.checkpoint_path)
        model = model_from_checkpoint(checkpoint, plan.recipe, plan.head.path, image_size, location)
        provenance = {**checkpoint.origin, "checkpoint": checkpoint.digest}
    classifier = Classifier.create(model, plan.preprocessing, dataset.classes, device, plan.recipe.precision)
    checkpointer = _create_checkpoint_manager(
        start_point,
        plan,
        dataset,
        dict(checkpoint.origin) if start_point.is_exact_resume and checkpoint else provenance,
    )
    remaining_names = start_point.stage_names[len(checkpointer.results) :]
    remaining_stages = tuple(
        next(stage for stage in plan.stages if stage.stage.name == name) for name in remaining_names
    )
    return RunSetup(start_point, plan, remaining_stages, dataset, classifier, checkpointer)


def _read_weights_preprocessing(recipe_file: RecipeFile, reporter: Reporter) -> Preprocessing:
    """What the recipe makes of its weights' preprocessing, when their file is here or has been downloaded."""
    recipe = recipe_file.recipe
    weights_preprocessing = read_preprocessing(recipe.backbone, recipe_file.locate("backbone", "weights"), reporter)
    return adapt_preprocessing(weights_preprocessing, recipe.data)


def _resolve_preprocessing(start_point: StartPoint, reporter: Reporter) -> Preprocessing | None:
    """A checkpoint's own, exactly where the run goes on, else with the sizes that the recipe asks for.

    A file that its weights once came from is needed only where the recipe asks for the file's mean and std.
    """
    checkpoint, recipe = start_point.checkpoint, start_point.recipe_file.recipe
    if checkpoint is None or start_point.is_exact_resume:
        return checkpoint.preprocessing if checkpoint else None
    checkpoint_preprocessing, weights = checkpoint.preprocessing, recipe.backbone.weights
    if weights == "none" or is_weights_name(weights):
        preprocessing = adapt_preprocessing(default_preprocessing(recipe.backbone.name, weights), recipe.data)
    elif recipe.data.normalize == "pretrained" and not _uses_checkpoint_normalization(start_point):
        preprocessing = _read_weights_preprocessing(start_point.recipe_file, reporter)
    else:
        preprocessing = adapt_preprocessing(checkpoint_preprocessing, recipe.data)
    if _uses_checkpoint_normalization(start_point):
        preprocessing = dataclasses.replace(
            preprocessing, mean=checkpoint_preprocessing.mean, std=checkpoint_preprocessing.std
        )
    return dataclasses.replace(preprocessing, interpolation=checkpoint_preprocessing.interpolation)


def _uses_checkpoint_normalization(start_point: StartPoint) -> bool:
    """Whether mean and std are those of a checkpoint: where the run goes on, or asks for what the checkpoint asked."""
    if start_point.checkpoint is None:
        return False
    checkpoint_normalize = start_point.checkpoint.recipe["data"]["normalize"]
    recipe_normalize: Any = start_point.recipe_file.recipe.model_dump(mode="json")["data"]["normalize"]
    return start_point.is_exact_resume or bool(checkpoint_normalize == recipe_normalize)


def _restrict_to_checkpoint_images(
    dataset: ImageDataset, checkpoint: Checkpoint, start_point: StartPoint, reporter: Reporter
) -> ImageDataset:
    """The images that the run began with, no others."""
    checkpoint_splits = checkpoint.splits_by_path()
    current_paths = {sample.path for samples in dataset.splits.values() for sample in samples}
    missing_paths = [path for path in checkpoint_splits if path not in current_paths]
    if missing_paths:
        raise DataError(
            f"{dataset.source}: {len(missing_paths)} images that the run began with are no longer there, the first is "
            f"{missing_paths[0]}; put them back, or add --stage to begin a new run from the weights of {start_point.checkpoint_path}"
        )
    if num_added := len(current_paths - checkpoint_splits.keys()):
        reporter.warn(f"{dataset.source}: {num_added} images were added since the run began; it goes on without them")
    restricted_splits = {
        split: tuple(sample for sample in samples if sample.path in checkpoint_splits)
        for split, samples in dataset.splits.items()
    }
    dataset = dataclasses.replace(dataset, splits=restricted_splits)
    assert checkpoint.progress is not None
    if dataset.fingerprint() != checkpoint.progress["fingerprint"]:
        reporter.warn(f"{dataset.source}: images have changed since the run began; what follows differs from one run")
    return dataset


def _create_checkpoint_manager(
    start_point: StartPoint, plan: Plan, dataset: ImageDataset, provenance: Mapping[str, Any]
) -> CheckpointManager:
    checkpoint_template = Checkpoint(
        kind="best",
        recipe=plan.recipe.model_dump(mode="json"),
        classes=dataset.classes,
        preprocessing=plan.preprocessing,
        head_path=plan.head.path,
        stage="",
        epoch=0,
        metrics={},
        origin=provenance,
        held={split: tuple(sample.path for sample in samples) for split, samples in dataset.splits.items()},
        state={},
    )
    checkpointer = CheckpointManager(
        start_point.folder, checkpoint_template, start_point.stage_names, fingerprint=dataset.fingerprint()
    )
    if start_point.is_exact_resume and start_point.checkpoint and (progress := start_point.checkpoint.progress):
        checkpointer.history = history_from_dict(progress)
        checkpointer.results = results_from_dict(progress)
        checkpointer.skipped = set(progress["skipped"])
        checkpointer.start_times = list(progress["begun"])
        if checkpointer.history:
            start_point.folder.check_resumable(sorted({metrics.stage for metrics in checkpointer.history}))
    checkpointer.start_times.append(utc_now())
    return checkpointer


def choose_transform(setup: RunSetup, split: str) -> ImageTransform:
    """How the images of a split reach the network."""
    if split == "train":
        return build_train_transform(setup.plan.preprocessing, setup.plan.recipe.data.augment)
    return build_eval_transform(setup.plan.preprocessing)


def open_loader(setup: RunSetup, split: str, pixel_cache: PixelCache | None = None) -> ImageLoader:
    """A loader of a split, augmented for training; its processes end with its context. What `pixels` holds is not
    decoded anew. What a device other than the CPU can change by itself, in whole batches, is left to it."""
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
    num_workers = default_num_workers(data.num_workers, device, setup.dataset)
    return LoaderConfig(
        setup.dataset.root,
        data.on_corrupt_image,
        num_workers,
        device.type == "cuda",
        pixel_cache,
        setup.start_point.rehash,
    )


def defers_to_device(device: torch.device) -> bool:
    """Whether a device makes the changes of images that it can make itself."""
    return device.type != "cpu"


def run_metadata(setup: RunSetup, end_time: str | None = None) -> dict[str, Any]:
    """What run.json tells of a run: what it ran with and on, when, and whether it has ended."""
    data = setup.plan.recipe.data
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
        "origin": dict(setup.checkpointer.checkpoint_template.origin),
        "data": {
            "root": data.root,
            "fingerprint": setup.checkpointer.fingerprint,
            "classes": list(setup.dataset.classes),
            "splits": {split: list(paths) for split, paths in setup.checkpointer.checkpoint_template.held.items()},
        },
        "started": setup.checkpointer.start_times[0],
        "resumed": setup.checkpointer.start_times[1:],
        "ended": end_time,
    }


def utc_now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
