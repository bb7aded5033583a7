"""How a stage computes: the whole network on images, or what trains of it on what the rest once gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from ftcli.caching.eviction import fits_in_cache, get_cache_limit
from ftcli.data.batches import BatchLoader, RngKey
from ftcli.data.loader import max_workers
from ftcli.data.pixel_cache import PixelCache
from ftcli.evaluation.logits import ForwardFn, image_forward, suffix_forward
from ftcli.features.cache import CacheFullError, FeatureCache, ViewSpec
from ftcli.features.loaders import FeatureLoader
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.freezing import list_frozen_tensors, set_train_mode
from ftcli.planning import StagePlan
from ftcli.recipe.schema import Stage
from ftcli.results import Reporter, format_count, format_duration, format_size
from ftcli.training.keeping import ALWAYS_CACHE_BYTES, count_forward_images, count_views, estimate_cache_gain
from ftcli.training.precision import compile_forward
from ftcli.training.profiler import StageProfiler
from ftcli.training.setup import RunSetup, choose_transform, create_loader_config, open_loader
from ftcli.training.signals import GracefulStop


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and how it looks at that: `training` in the modes of training, `evaluating` in eval mode.

    `draws` are the random looks at the training images; epoch e, counted from 0, takes the one at e mod their number.
    None of them depends on how many there are. `kept` tells that the frozen part is not computed in the epochs.
    """

    train_loader: BatchLoader
    val_loader: BatchLoader
    train_forward: ForwardFn
    eval_forward: ForwardFn
    augmentation_keys: Sequence[RngKey | None]
    is_cached: bool

    def key_for_epoch(self, epoch: int) -> RngKey | None:
        """The look of an epoch, counted from 0."""
        return self.augmentation_keys[epoch % len(self.augmentation_keys)]


@dataclass(frozen=True)
class _CutStage:
    """The cut of a network between what is frozen and what trains, and the cache of what crosses it."""

    cut: ModelCut
    cache: FeatureCache

    def create_stage_data(
        self,
        setup: RunSetup,
        train_loader: BatchLoader,
        val_loader: BatchLoader,
        augmentation_keys: Sequence[RngKey | None],
        is_cached: bool,
    ) -> StageData:
        """The course behind the cut."""
        train_forward, eval_forward = (
            suffix_forward(suffix, setup.classifier) for suffix in (self.cut.training_suffix, self.cut.suffix)
        )
        return StageData(train_loader, val_loader, train_forward, eval_forward, augmentation_keys, is_cached)


@contextmanager
def open_stage_data(
    setup: RunSetup,
    plan: StagePlan,
    profiler: StageProfiler,
    reporter: Reporter,
    stop: GracefulStop,
    frozen_digests: Mapping[str, str],
) -> Iterator[StageData | None]:
    """Choose how a stage computes, say so, and compute what is to be kept of the frozen part; None if a signal came
    meanwhile. Processes that read images end with the context. `digests` are those of the frozen tensors as they are
    now.

    Where the network is cut, the stage sees the same looks and on the CPU the same bits whether they are kept or not:
    no result depends on how much room there is, or on what is faster. Raises what reading images raises, and RunError
    where the disk is full.
    """
    with profiler.measure("frozen"):
        cut_stage = _cut_model(setup, plan, frozen_digests, reporter)
        is_cached = cut_stage is not None and _should_cache(setup, plan, cut_stage, reporter)
        stage_data = _open_cached(setup, plan, cut_stage, reporter, stop) if cut_stage and is_cached else None
    if stage_data is not None:
        yield _compile_train_forward(setup, plan, stage_data, profiler, reporter)
        return
    if stop.is_set():
        yield None
        return
    with profiler.measure("data"):
        pixel_caches = _fill_pixel_caches(setup, plan.stage, reporter, stop)
    if pixel_caches is None:
        yield None
        return
    opened_data = (
        _open_full_model(setup, plan, pixel_caches)
        if cut_stage is None
        else _open_uncached(setup, plan, cut_stage, pixel_caches, profiler)
    )
    with opened_data as stage_data:
        yield _compile_train_forward(setup, plan, stage_data, profiler, reporter)


@contextmanager
def _open_full_model(setup: RunSetup, plan: StagePlan, pixel_caches: Mapping[str, PixelCache]) -> Iterator[StageData]:
    """The whole network on images, at which each epoch has a look of its own."""
    forward = image_forward(setup.classifier)
    augmentation_keys = [(setup.plan.recipe.seed, plan.stage.name, view + 1) for view in range(plan.stage.epochs)]
    with (
        open_loader(setup, "train", pixel_caches.get("train")) as train_loader,
        open_loader(setup, "val", pixel_caches.get("val")) as val_loader,
    ):
        yield StageData(train_loader, val_loader, forward, forward, augmentation_keys, is_cached=False)


@contextmanager
def _open_uncached(
    setup: RunSetup,
    plan: StagePlan,
    cut_stage: _CutStage,
    pixel_caches: Mapping[str, PixelCache],
    profiler: StageProfiler,
) -> Iterator[StageData]:
    """What trains, on what the frozen part gives for the images, computed in every epoch."""

    def open_split(split: str) -> FeatureLoader:
        samples, transform = setup.dataset.splits[split], choose_transform(setup, split)
        loader_config, batch_size = (
            create_loader_config(setup, pixel_caches.get(split)),
            setup.plan.recipe.data.batch_size,
        )
        return FeatureLoader(
            cut_stage.cache.backbone, samples, transform, batch_size, loader_config, lambda: profiler.measure("frozen")
        )

    with open_split("train") as train_loader, open_split("val") as val_loader:
        yield cut_stage.create_stage_data(
            setup, train_loader, val_loader, _list_augmentation_keys(setup, plan.stage), is_cached=False
        )


def _compile_train_forward(
    setup: RunSetup, plan: StagePlan, stage_data: StageData, profiler: StageProfiler, reporter: Reporter
) -> StageData:
    """The course with its steps compiled, if the recipe asks for that."""
    if not setup.plan.recipe.compile:
        return stage_data
    set_train_mode(setup.classifier.model, plan.frozen_names)
    with profiler.measure("compiling"):
        example_inputs = _take_full_batch(stage_data.train_loader, stage_data.key_for_epoch(0))
        if example_inputs is None:
            return stage_data  # the first epoch tells what is wrong with the images
        return replace(
            stage_data,
            train_forward=compile_forward(stage_data.train_forward, example_inputs, setup.classifier.model, reporter),
        )


def _take_full_batch(loader: BatchLoader, key: RngKey | None) -> tuple[Tensor, ...] | None:
    """The values of a whole batch, of the first images that are not broken; None if all are."""
    batch_size, readable_paths = min(loader.batch_size, len(loader.samples)), set[str]()
    for batch in loader.batches(rng_key=key):
        if len(batch.paths) == batch_size:
            return batch.inputs
        readable_paths.update(batch.paths)
        if len(readable_paths) >= batch_size:
            break
    indices = [index for index, sample in enumerate(loader.samples) if sample.path in readable_paths]
    return next(loader.batches(indices[:batch_size], key)).inputs if indices else None


def _list_augmentation_keys(setup: RunSetup, stage: Stage) -> list[RngKey | None]:
    """The looks at the training images that a stage takes turns among where the network is cut."""
    transform = choose_transform(setup, "train")
    if not transform.is_random:
        return [None]
    return [(setup.plan.recipe.seed, stage.name, view + 1) for view in range(count_views(stage, transform))]


def _cut_model(
    setup: RunSetup, plan: StagePlan, frozen_digests: Mapping[str, str], reporter: Reporter
) -> _CutStage | None:
    """The network, cut behind its frozen part; None where there is no such part, where the recipe wants it whole, and,
    as is said, where it cannot be cut."""
    stage, freezing, classifier = plan.stage, plan.frozen_names, setup.classifier
    if stage.cache == "off" or not freezing.parameters:
        return None
    cut = cut_model(classifier.model, freezing.parameters, freezing.modules, setup.plan.preprocessing.image_size)
    if cut is None or cut.is_uncut:
        reason = "its code cannot be divided" if cut is None else "what trains comes before it"
        reporter.info(f"Stage {stage.name}: the frozen part is computed in every epoch, for {reason}")
        return None
    known_digests = {
        id(tensor): frozen_digests[name] for name, tensor in list_frozen_tensors(classifier.model, freezing).items()
    }
    cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision, known_digests)
    return _CutStage(cut, cache)


def _should_cache(setup: RunSetup, plan: StagePlan, cut_stage: _CutStage, reporter: Reporter) -> bool:
    """Whether what crosses the cut is kept: where it fits, and that is worth while. It is said either way."""
    stage, cache = plan.stage, cut_stage.cache
    num_train, num_val = (len(setup.dataset.splits[split]) for split in ("train", "val"))
    num_views = len(_list_augmentation_keys(setup, stage))
    num_records = num_views * num_train + num_val
    num_bytes = num_records * cache.backbone.row_bytes
    if not fits_in_cache(num_bytes):
        reporter.info(
            f"Stage {stage.name}: the frozen part is computed in every epoch, for what it gives would take "
            f"{format_size(num_bytes)}, more than the disk or the cache's limit of {format_size(get_cache_limit())} allows"
        )
        return False
    gain_note = ""
    if cache.backbone.row_bytes > ALWAYS_CACHE_BYTES:
        uncached_seconds, cached_seconds = estimate_cache_gain(
            cache.backbone, count_forward_images(stage.epochs, num_train, num_val), num_records, num_bytes
        )
        if cached_seconds >= uncached_seconds:
            reporter.info(
                f"Stage {stage.name}: the frozen part is computed in every epoch, about {format_duration(uncached_seconds)}, for "
                f"keeping {format_size(num_bytes)} of what it gives would take {format_duration(cached_seconds)}"
            )
            return False
        gain_note = f": about {format_duration(cached_seconds)} instead of {format_duration(uncached_seconds)}"
    boundary_names = ", ".join(tensor.name for tensor in cut_stage.cut.boundary)
    cached_images = (
        format_count(num_views, "view") + f" of {format_count(num_train, 'image')} and {num_val:,} for validation"
    )
    reporter.info(
        f"Stage {stage.name}: the frozen part, up to {boundary_names}, is computed once for {cached_images}, {format_size(num_bytes)}{gain_note}"
    )
    return True


def _open_cached(
    setup: RunSetup, plan: StagePlan, cut_stage: _CutStage, reporter: Reporter, stop: GracefulStop
) -> StageData | None:
    """What is trained on where the frozen part is kept; None if a signal came meanwhile, or there is no room."""
    data, dataset, cache, stage_name = setup.plan.recipe.data, setup.dataset, cut_stage.cache, plan.stage.name
    loader_config = create_loader_config(setup)
    augmentation_keys, loaders = _list_augmentation_keys(setup, plan.stage), list[BatchLoader]()
    for split, keys in (("train", augmentation_keys), ("val", [None])):
        task, transform = f"{stage_name}: frozen part, {split}", choose_transform(setup, split)
        views = [ViewSpec(transform, key) for key in keys]
        try:
            loader = cache.get_or_compute(
                dataset.splits[split], views, data.batch_size, loader_config, reporter, task, stop.is_set
            )
        except CacheFullError:  # what leaves for it is less than was hoped: it is in use
            reporter.info(
                f"Stage {stage_name}: the frozen part is computed in every epoch, for what is in use leaves no room in the "
                "cache"
            )
            return None
        if loader is None:
            return None
        loaders.append(loader)
    if not cache.backbone.num_computed:
        reporter.info(f"Stage {stage_name}: all of that was computed before and is read from the cache")
    return cut_stage.create_stage_data(setup, loaders[0], loaders[1], augmentation_keys, is_cached=True)


def _fill_pixel_caches(
    setup: RunSetup, stage: Stage, reporter: Reporter, stop: GracefulStop
) -> dict[str, PixelCache] | None:
    """What is kept of the images as they are before chance, by split: nothing where each is read once, or where there
    is no room. None if `stop` became true."""
    dataset, data = setup.dataset, setup.plan.recipe.data
    if stage.cache == "off" or stage.epochs < 2:
        return {}
    pixel_caches = {
        split: PixelCache(dataset.root, choose_transform(setup, split), setup.start_point.rehash)
        for split in ("train", "val")
    }
    if not fits_in_cache(
        sum(pixel_cache.estimate_bytes(dataset.splits[split]) for split, pixel_cache in pixel_caches.items())
    ):
        return {}
    for split, pixel_cache in pixel_caches.items():
        task, num_workers = f"{stage.name}: reading {split}", max_workers(data.num_workers)
        if not pixel_cache.fill(dataset.splits[split], num_workers, data.on_corrupt_image, reporter, task, stop.is_set):
            return None
    return pixel_caches
