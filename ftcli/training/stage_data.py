"""The data of a stage: loaders of images or of features, and the forward functions for their batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ftcli.caching.eviction import fits_in_cache, get_cache_limit
from ftcli.data.batches import BatchLoader
from ftcli.data.loader import resolve_num_workers
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.transforms import ImageTransform
from ftcli.evaluation.logits import image_forward
from ftcli.features.cache import FeatureRequest
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.pipeline import FeaturePipeline, ForwardFn, NoCut, create_pipeline
from ftcli.models.freezing import list_frozen_tensors, set_train_mode
from ftcli.planning import StagePlan, list_augmentation_keys
from ftcli.recipe.schema import Stage
from ftcli.results import ProgressTask, format_count, format_duration, format_size
from ftcli.runtime import RngKey, measure_free_memory
from ftcli.training.compile import compile_forward
from ftcli.training.profiler import StageProfiler
from ftcli.training.setup import RunSetup, choose_transform, create_loader_config, open_loader

logger = logging.getLogger(__name__)

ALWAYS_CACHE_BYTES = 64 * 1024
"""Bytes of an image's features up to which reading them is always faster than computing them."""
MEMORY_BYTES_PER_SECOND, DISK_BYTES_PER_SECOND = 1.5e9, 2e8
"""Conservative speeds at which cached features are read from memory and from disk."""


@dataclass(frozen=True)
class StageData:
    """The loaders of a stage and the forward functions of its train and eval mode.

    `augmentation_keys` has one key for each augmented view of the training images; epochs cycle through them.
    `is_cached` is True if the features are cached, so that epochs do not compute the frozen backbone.
    """

    train_loader: BatchLoader
    val_loader: BatchLoader
    train_forward: ForwardFn
    eval_forward: ForwardFn
    augmentation_keys: Sequence[RngKey | None]
    is_cached: bool

    def key_for_epoch(self, epoch: int) -> RngKey | None:
        """Return the key of an epoch, counted from 0."""
        return self.augmentation_keys[epoch % len(self.augmentation_keys)]


@dataclass(frozen=True)
class CacheCost:
    """The cost of a stage's features.

    With the cache, the backbone computes `num_records` images, whose features are stored; without it,
    `num_forward_images`.
    """

    backbone: FrozenBackbone
    num_records: int
    num_forward_images: int

    @property
    def num_bytes(self) -> int:
        """The size of the cached features."""
        return self.num_records * self.backbone.row_bytes

    @property
    def fits(self) -> bool:
        return fits_in_cache(self.num_bytes)

    @property
    def needs_measurement(self) -> bool:
        """True for large features, for which only a measurement shows if caching is faster."""
        return self.backbone.row_bytes > ALWAYS_CACHE_BYTES

    @property
    def is_caching_faster(self) -> bool:
        return not self.needs_measurement or self.cached_seconds < self.uncached_seconds

    @property
    def uncached_seconds(self) -> float:
        return self._seconds[0]

    @property
    def cached_seconds(self) -> float:
        return self._seconds[1]

    @cached_property
    def _seconds(self) -> tuple[float, float]:
        return estimate_cache_seconds(self.backbone, self.num_forward_images, self.num_records, self.num_bytes)


def compute_cache_cost(
    backbone: FrozenBackbone, stage: Stage, train_transform: ImageTransform, num_train: int, num_val: int
) -> CacheCost:
    """Return the cost of the features of a stage with epochs."""
    num_records = count_views(stage, train_transform) * num_train + num_val
    # All images in each epoch, and the validation images once before the first epoch.
    num_forward_images = stage.epochs * (num_train + num_val) + num_val
    return CacheCost(backbone, num_records, num_forward_images)


def compute_head_fit_cache_cost(backbone: FrozenBackbone, num_train: int, num_val: int) -> CacheCost:
    """Return the cost of the features of a head fit, which computes each image once."""
    return CacheCost(backbone, num_train + num_val, num_train + num_val)


def count_views(stage: Stage, transform: ImageTransform) -> int:
    """Return the number of views of each training image whose features a stage uses."""
    return len(list_augmentation_keys(0, stage, has_frozen_backbone=True)) if transform.is_random else 1


def estimate_cache_seconds(
    backbone: FrozenBackbone, num_forward_images: int, num_records: int, num_bytes: int
) -> tuple[float, float]:
    """Return the seconds to compute the features in each epoch, and to compute them once, store them and read them."""
    seconds_per_image = backbone.measure_seconds_per_image()
    bytes_per_second = MEMORY_BYTES_PER_SECOND if num_bytes < measure_free_memory() / 2 else DISK_BYTES_PER_SECOND
    read_seconds = (num_bytes + num_forward_images * backbone.row_bytes) / bytes_per_second
    return num_forward_images * seconds_per_image, num_records * seconds_per_image + read_seconds


@contextmanager
def open_stage_data(
    setup: RunSetup, plan: StagePlan, profiler: StageProfiler, task: ProgressTask, frozen_digests: Mapping[str, str]
) -> Iterator[StageData]:
    """Open the loaders of a stage, after computing the features to be cached. The workers stop when the context exits.

    `frozen_digests` are the digests of the frozen tensors. A cut model trains on the same views whether its features
    are cached or not, and on a CPU the results are bitwise equal. Raises StopRequestedError, RunError if the disk is
    full, and the errors of reading images.
    """
    with ExitStack() as stack:
        with profiler.measure("frozen"):
            pipeline = _create_pipeline(setup, plan, frozen_digests)
            if pipeline is not None:
                stage_data = stack.enter_context(_open_features(setup, plan, pipeline, profiler, task))
        if pipeline is None:
            task.check_stop()
            stage_data = stack.enter_context(_open_images(setup, plan, profiler, task))
        yield _compile_train_forward(setup, plan, stage_data, profiler)


def _create_pipeline(setup: RunSetup, plan: StagePlan, frozen_digests: Mapping[str, str]) -> FeaturePipeline | None:
    """Cut the model after its frozen backbone, unless nothing is frozen, the cache is off or it cannot be cut."""
    stage, frozen_names, classifier = plan.stage, plan.frozen_names, setup.classifier
    if not plan.separates_backbone:
        return None
    frozen_tensors = list_frozen_tensors(classifier.model, frozen_names)
    pipeline = create_pipeline(
        classifier.model,
        frozen_names,
        classifier.preprocessing,
        classifier.device,
        classifier.precision,
        {id(tensor): frozen_digests[name] for name, tensor in frozen_tensors.items()},
    )
    if isinstance(pipeline, NoCut):
        logger.info(f"Stage {stage.name}: the frozen backbone is computed in every epoch because {pipeline.reason}")
        return None
    return pipeline


@contextmanager
def _open_features(
    setup: RunSetup, plan: StagePlan, pipeline: FeaturePipeline, profiler: StageProfiler, task: ProgressTask
) -> Iterator[StageData]:
    """Open loaders of the features of the frozen backbone, cached if that is possible and faster."""
    stage, data = plan.stage, setup.plan.recipe.data
    augmentation_keys = _list_augmentation_keys(setup, stage)
    requests = [
        FeatureRequest(
            setup.dataset.splits[split],
            choose_transform(setup, split),
            keys,
            task.subtask(f"feature extraction, {split}"),
        )
        for split, keys in (("train", augmentation_keys), ("val", [None]))
    ]
    use_cache = _should_cache(setup, stage, pipeline)

    def fill_pixel_caches() -> list[PixelCache | None]:
        with profiler.measure("data"):
            return _fill_pixel_caches(setup, stage, task)

    with pipeline.open(
        requests,
        data.batch_size,
        create_loader_config(setup),
        use_cache,
        fill_pixel_caches,
        lambda: profiler.measure("frozen"),
    ) as opened:
        if opened.is_cached and not pipeline.backbone.num_computed:
            logger.info(f"Stage {stage.name}: all features are read from the cache")
        train_loader, val_loader = opened.loaders
        yield StageData(
            train_loader,
            val_loader,
            pipeline.train_forward,
            pipeline.eval_forward,
            augmentation_keys,
            opened.is_cached,
        )


def _list_augmentation_keys(setup: RunSetup, stage: Stage) -> list[RngKey | None]:
    """Return a key for each view of the training images of a cut model."""
    transform = choose_transform(setup, "train")
    if not transform.is_random:
        return [None]
    return [*list_augmentation_keys(setup.plan.recipe.seed, stage, has_frozen_backbone=True)]


def _should_cache(setup: RunSetup, stage: Stage, pipeline: FeaturePipeline) -> bool:
    """Return whether to cache the features of a stage, and log the reason."""
    num_train, num_val = (len(setup.dataset.splits[split]) for split in ("train", "val"))
    train_transform = choose_transform(setup, "train")
    cache_cost = compute_cache_cost(pipeline.backbone, stage, train_transform, num_train, num_val)
    size = format_size(cache_cost.num_bytes)
    if not cache_cost.fits:
        logger.info(
            f"Stage {stage.name}: the frozen backbone is computed in every epoch because its features, {size}, exceed "
            f"the free disk space or the cache limit of {format_size(get_cache_limit())}"
        )
        return False
    if not cache_cost.is_caching_faster:
        logger.info(
            f"Stage {stage.name}: the frozen backbone is computed in every epoch, "
            f"about {format_duration(cache_cost.uncached_seconds)}, because caching its features, {size}, would take "
            f"{format_duration(cache_cost.cached_seconds)}"
        )
        return False
    gain = ""
    if cache_cost.needs_measurement:
        cached, uncached = (format_duration(s) for s in (cache_cost.cached_seconds, cache_cost.uncached_seconds))
        gain = f": about {cached} instead of {uncached}"
    boundary = ", ".join(tensor.name for tensor in pipeline.cut.boundary)
    views = format_count(count_views(stage, train_transform), "view")
    logger.info(
        f"Stage {stage.name}: the frozen backbone, up to {boundary}, is computed once for {views} of "
        f"{format_count(num_train, 'image')} and {num_val:,} for validation, {size}{gain}"
    )
    return True


@contextmanager
def _open_images(setup: RunSetup, plan: StagePlan, profiler: StageProfiler, task: ProgressTask) -> Iterator[StageData]:
    """Open loaders of images for the whole network, with new augmented views in each epoch."""
    with profiler.measure("data"):
        train_cache, val_cache = _fill_pixel_caches(setup, plan.stage, task)
    forward = image_forward(setup.classifier)
    augmentation_keys = list_augmentation_keys(setup.plan.recipe.seed, plan.stage, has_frozen_backbone=False)
    with (
        open_loader(setup, "train", train_cache) as train_loader,
        open_loader(setup, "val", val_cache) as val_loader,
    ):
        yield StageData(train_loader, val_loader, forward, forward, augmentation_keys, is_cached=False)


def _fill_pixel_caches(setup: RunSetup, stage: Stage, task: ProgressTask) -> list[PixelCache | None]:
    """Return the filled pixel caches of train and val; None where images are read only once or do not fit."""
    dataset, data = setup.dataset, setup.plan.recipe.data
    if stage.cache == "off" or stage.epochs < 2:
        return [None, None]
    pixel_caches = {
        split: PixelCache(dataset.root, choose_transform(setup, split), setup.start_point.rehash)
        for split in ("train", "val")
    }
    if not fits_in_cache(sum(cache.estimate_bytes(dataset.splits[split]) for split, cache in pixel_caches.items())):
        return [None, None]
    for split, cache in pixel_caches.items():
        num_workers = resolve_num_workers(data.num_workers)
        cache.fill(dataset.splits[split], num_workers, data.on_corrupt_image, task.subtask(f"reading {split}"))
    return list(pixel_caches.values())


def _compile_train_forward(
    setup: RunSetup, plan: StagePlan, stage_data: StageData, profiler: StageProfiler
) -> StageData:
    """Compile the forward function of training if the recipe asks for it."""
    if not setup.plan.recipe.compile:
        return stage_data
    set_train_mode(setup.classifier.model, plan.frozen_names)
    with profiler.measure("compiling"):
        example_inputs = _load_full_batch(stage_data.train_loader, stage_data.key_for_epoch(0))
        if example_inputs is None:
            return stage_data  # the first validation reports the corrupt images
        forward = compile_forward(stage_data.train_forward, example_inputs, setup.classifier.model)
        return replace(stage_data, train_forward=forward)


def _load_full_batch(loader: BatchLoader, key: RngKey | None) -> tuple[Tensor, ...] | None:
    """Return the inputs of a full batch of the first readable images; None if all are corrupt."""
    batch_size, readable_paths = min(loader.batch_size, len(loader.samples)), set[str]()
    for batch in loader.batches(rng_key=key):
        if len(batch.paths) == batch_size:
            return batch.inputs
        readable_paths.update(batch.paths)
        if len(readable_paths) >= batch_size:
            break
    indices = [index for index, sample in enumerate(loader.samples) if sample.path in readable_paths]
    return next(loader.batches(indices[:batch_size], key)).inputs if indices else None
