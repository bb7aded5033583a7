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

from ftcli import __version__
from ftcli.data.loading import Loader, measure_preprocessing, share_cores
from ftcli.data.pixels import PixelCache
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import ImageSet
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.inference.classifier import Classifier, revive_model
from ftcli.models.published import name_weights
from ftcli.models.weights import load_weights, read_preprocessing
from ftcli.models.zoo import adapt_preprocessing, default_preprocessing
from ftcli.planning import AnyPlan, Plan, align_classes, build_model, gather_images, plan_recipe, put_head
from ftcli.recipe.loading import Document
from ftcli.recipe.schema.network import is_address
from ftcli.results import Preprocessing, Reporter
from ftcli.runs.checkpoint import Checkpoint
from ftcli.training.beginning import Beginning
from ftcli.training.journal import Journal, revive_results, revive_rows


@dataclass(frozen=True)
class Job:
    """A beginning whose network, images and plan are there and fit together. `stages` are those left to train."""

    beginning: Beginning
    plan: Plan
    stages: tuple[AnyPlan, ...]
    images: ImageSet
    classifier: Classifier
    journal: Journal

    @property
    def progress(self) -> Mapping[str, Any] | None:
        """What last.pt holds, where the run goes on exactly."""
        checkpoint = self.beginning.checkpoint
        return checkpoint.progress if checkpoint and self.beginning.exact else None


def prepare(beginning: Beginning, device: torch.device, reporter: Reporter) -> Job:
    """Plan, find the images, and build the network with its weights.

    Raises RecipeError, DataError and CheckpointError, in this order; nothing was written then, but for a known data
    set that was fetched.
    """
    document, checkpoint = beginning.document, beginning.checkpoint
    plan = plan_recipe(document, _settle_preprocessing(beginning, reporter))
    images = gather_images(document, reporter, checkpoint.splits_by_place() if checkpoint else None)
    if checkpoint is not None:
        images = align_classes(images, checkpoint.classes, str(beginning.source))
        if beginning.exact:
            images = _keep_to(images, checkpoint, beginning, reporter)
    if checkpoint is None and is_address(document.recipe.backbone.weights):  # what it is shows when it has come
        plan = plan_recipe(document, _ask_weights(document, reporter))
    if document.recipe.data.normalize == "dataset" and not _keeps_normalization(beginning):
        measured = measure_preprocessing(plan.preprocessing, images, document.recipe.data)
        plan = dataclasses.replace(plan, preprocessing=measured)
    if checkpoint is None:
        model = build_model(plan)
        origin = load_weights(
            model, plan.recipe.backbone, plan.head.path, document.locate("backbone", "weights"), reporter
        )
        put_head(model, plan, len(images.classes))
        came = {"weights": origin.source, "weights_sha256": origin.sha256, "checkpoint": None}
    else:
        model = revive_model(plan, checkpoint, str(beginning.source))
        came = {**checkpoint.origin, "checkpoint": checkpoint.digest}
    classifier = Classifier.place(model, plan.preprocessing, images.classes, device, plan.recipe.precision)
    journal = _open_journal(
        beginning, plan, images, dict(checkpoint.origin) if beginning.exact and checkpoint else came
    )
    left = beginning.stages[len(journal.results) :]
    stages = tuple(next(stage for stage in plan.stages if stage.stage.name == name) for name in left)
    return Job(beginning, plan, stages, images, classifier, journal)


def _ask_weights(document: Document, reporter: Reporter) -> Preprocessing:
    """What the recipe makes of its weights' preprocessing, when their file is here or has been downloaded."""
    recipe = document.recipe
    own = read_preprocessing(recipe.backbone, document.locate("backbone", "weights"), reporter)
    return adapt_preprocessing(own, recipe.data)


def _settle_preprocessing(beginning: Beginning, reporter: Reporter) -> Preprocessing | None:
    """A checkpoint's own, exactly where the run goes on, else with the sizes that the recipe asks for.

    A file that its weights once came from is needed only where the recipe asks for the file's mean and std.
    """
    checkpoint, recipe = beginning.checkpoint, beginning.document.recipe
    if checkpoint is None or beginning.exact:
        return checkpoint.preprocessing if checkpoint else None
    own, weights = checkpoint.preprocessing, recipe.backbone.weights
    if weights == "none" or name_weights(weights):
        wanted = adapt_preprocessing(default_preprocessing(recipe.backbone.name, weights), recipe.data)
    elif recipe.data.normalize == "pretrained" and not _keeps_normalization(beginning):
        wanted = _ask_weights(beginning.document, reporter)
    else:
        wanted = adapt_preprocessing(own, recipe.data)
    if _keeps_normalization(beginning):
        wanted = dataclasses.replace(wanted, mean=own.mean, std=own.std)
    return dataclasses.replace(wanted, interpolation=own.interpolation)


def _keeps_normalization(beginning: Beginning) -> bool:
    """Whether mean and std are those of a checkpoint: where the run goes on, or asks for what the checkpoint asked."""
    if beginning.checkpoint is None:
        return False
    asked = beginning.checkpoint.recipe["data"]["normalize"]
    wanted: Any = beginning.document.recipe.model_dump(mode="json")["data"]["normalize"]
    return beginning.exact or bool(asked == wanted)


def _keep_to(images: ImageSet, checkpoint: Checkpoint, beginning: Beginning, reporter: Reporter) -> ImageSet:
    """The images that the run began with, no others."""
    held = checkpoint.splits_by_path()
    found = {sample.path for samples in images.splits.values() for sample in samples}
    missing = [path for path in held if path not in found]
    if missing:
        raise DataError(
            f"{images.source}: {len(missing)} images that the run began with are no longer there, the first is "
            f"{missing[0]}; put them back, or add --stage to begin a new run from the weights of {beginning.source}"
        )
    if added := len(found - held.keys()):
        reporter.warn(f"{images.source}: {added} images were added since the run began; it goes on without them")
    kept = {
        split: tuple(sample for sample in samples if sample.path in held) for split, samples in images.splits.items()
    }
    images = dataclasses.replace(images, splits=kept)
    assert checkpoint.progress is not None
    if images.fingerprint() != checkpoint.progress["fingerprint"]:
        reporter.warn(f"{images.source}: images have changed since the run began; what follows differs from one run")
    return images


def _open_journal(beginning: Beginning, plan: Plan, images: ImageSet, origin: Mapping[str, Any]) -> Journal:
    world = Checkpoint(
        kind="best",
        recipe=plan.recipe.model_dump(mode="json"),
        classes=images.classes,
        preprocessing=plan.preprocessing,
        stage="",
        epoch=0,
        metrics={},
        origin=origin,
        held={split: tuple(sample.path for sample in samples) for split, samples in images.splits.items()},
        state={},
    )
    journal = Journal(beginning.folder, world, beginning.stages, fingerprint=images.fingerprint())
    if beginning.exact and beginning.checkpoint and (progress := beginning.checkpoint.progress):
        journal.rows = revive_rows(progress)
        journal.results = revive_results(progress)
        journal.skipped = set(progress["skipped"])
        journal.begun = list(progress["begun"])
        if journal.rows:
            beginning.folder.check_whole(sorted({row.stage for row in journal.rows}))
    journal.begun.append(tell_time())
    return journal


def choose_transform(job: Job, split: str) -> ImageTransform:
    """How the images of a split reach the network."""
    if split == "train":
        return build_train_transform(job.plan.preprocessing, job.plan.recipe.data.augment)
    return build_eval_transform(job.plan.preprocessing)


def open_loader(job: Job, split: str, pixels: PixelCache | None = None) -> Loader:
    """A loader of a split, augmented for training; its processes end with its context. What `pixels` holds is not
    decoded anew. What a device other than the CPU can change by itself, in whole batches, is left to it."""
    transform = choose_transform(job, split)
    if is_deferred(job.classifier.device):
        transform = transform.defer()
    return Loader(job.images.splits[split], transform, job.plan.recipe.data.batch_size, find_files(job, pixels))


def find_files(job: Job, pixels: PixelCache | None = None) -> ImageFiles:
    """Where the images of a job are and how they are read beside its network. What `pixels` holds is not decoded
    anew."""
    data, device = job.plan.recipe.data, job.classifier.device
    num_workers = share_cores(data.num_workers, device, job.images)
    return ImageFiles(job.images.root, data.on_corrupt_image, num_workers, device.type == "cuda", pixels)


def is_deferred(device: torch.device) -> bool:
    """Whether a device makes the changes of images that it can make itself."""
    return device.type != "cpu"


def describe_job(job: Job, ended: str | None = None) -> dict[str, Any]:
    """What run.json tells of a run: what it ran with and on, when, and whether it has ended."""
    data = job.plan.recipe.data
    return {
        "ftcli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "device": str(job.classifier.device),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "seed": job.plan.recipe.seed,
        "origin": dict(job.journal.world.origin),
        "data": {
            "root": data.root,
            "fingerprint": job.journal.fingerprint,
            "classes": list(job.images.classes),
            "splits": {split: list(paths) for split, paths in job.journal.world.held.items()},
        },
        "started": job.journal.begun[0],
        "resumed": job.journal.begun[1:],
        "ended": ended,
    }


def tell_time() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
