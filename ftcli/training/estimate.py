"""What a training will cost on this machine: real steps are tried and scaled to the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftcli.caching.eviction import fits_in_cache
from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, max_workers
from ftcli.data.transforms import build_train_transform
from ftcli.evaluation.classifier import Classifier
from ftcli.features.cache import FeatureCache
from ftcli.features.solving import ProbeData, fit_logistic_head
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.freezing import set_requires_grad
from ftcli.planning import (
    AnyStagePlan,
    HeadFitPlan,
    Plan,
    StagePlan,
    build_model,
    find_classes,
    load_dataset,
    plan_recipe,
    reset_classifier,
)
from ftcli.recipe.loading import RecipeFile
from ftcli.results import MemoryBreakdown, Progress, Reporter, StageEstimate
from ftcli.runtime import choose_device, count_cores, raise_on_oom
from ftcli.training.keeping import ALWAYS_CACHE_BYTES, count_forward_images, count_views, estimate_cache_gain
from ftcli.training.precision import resolve_classifier_precision
from ftcli.training.trials import (
    create_step_inputs,
    list_tensor_bytes,
    measure_peak_bytes,
    measure_seconds,
    profile_step,
)

NUM_READ_IMAGES = 16
"""Images that are read to learn how long that takes."""
NUM_FORWARD_IMAGES, NUM_FIT_IMAGES = 16, 1000
"""Images that a forward pass is tried on alone, and from which a head is solved to learn how long that takes."""
DEFAULT_NUM_IMAGES = 1000
"""Training images that figures are told for where there are no data."""


@dataclass(frozen=True)
class _DataStats:
    """How many images an epoch trains on and validates, how many a step has, and the seconds that reading one takes,
    None if unknown."""

    num_train: int
    num_val: int
    batch_size: int
    read_seconds: float | None


@dataclass(frozen=True)
class _EstimateContext:
    """What all stages are estimated with; `process` is what the process held before it had a network, in bytes."""

    plan: Plan
    classifier: Classifier
    data_stats: _DataStats
    process_bytes: int

    def overlap_reading(self, compute_seconds: float) -> float:
        """Seconds an image when it is read and computed with. On the CPU both share the cores; elsewhere the slower one
        counts. Without workers they take turns."""
        num_workers, read_seconds = max_workers(self.plan.recipe.data.num_workers), self.data_stats.read_seconds
        if read_seconds is None:
            return compute_seconds
        if not num_workers:
            return compute_seconds + read_seconds
        if self.classifier.device.type == "cpu":
            return compute_seconds + read_seconds / min(num_workers, count_cores())
        return max(compute_seconds, read_seconds / num_workers)


@dataclass(frozen=True)
class _FeatureCacheEstimate:
    """The frozen part where the network is cut behind it: the bytes that are kept of it on the disk, and the seconds to
    compute it once and to read that, or, where nothing is kept, to compute it in every epoch."""

    cut: ModelCut
    num_bytes: int
    seconds: float


def estimate_training(recipe_file: RecipeFile, reporter: Reporter) -> tuple[StageEstimate, ...]:
    """Time and memory of each stage of a recipe, from steps on random values with random weights.

    What is kept of a frozen part counts as computed once in each stage, as in a first run; compiling is left out.
    Memory is counted: parameters, gradients, the optimizer's state, what the forward pass keeps, and what the process
    holds already; what a step takes beyond that for a moment is observed. Nothing is downloaded, fetched or written.
    Raises RecipeError and DataError for a recipe or data that do not fit, RunError if memory runs out.
    """
    plan = plan_recipe(recipe_file)
    class_names = find_classes(recipe_file, reporter)
    data_stats = _collect_data_stats(recipe_file, plan, reporter)
    device = choose_device("auto")
    process_bytes = measure_peak_bytes(device)
    with torch.random.fork_rng(devices=[]), raise_on_oom():
        model = build_model(plan)
        reset_classifier(model, plan, len(class_names))
        classifier = Classifier.create(model, plan.preprocessing, class_names, device, plan.recipe.precision)
        classifier = resolve_classifier_precision(
            classifier, plan.recipe.backbone.name, data_stats.batch_size, {}, reporter, save=False
        )
        context = _EstimateContext(plan, classifier, data_stats, process_bytes)
        estimates = []
        for number, stage in enumerate(plan.stages, 1):
            set_requires_grad(model, stage.frozen_names)
            cache_estimate = _estimate_feature_cache(context, stage)
            estimate_stage = _estimate_head_fit if isinstance(stage, HeadFitPlan) else _estimate_steps
            estimates.append(estimate_stage(context, stage, cache_estimate))  # type: ignore[arg-type]  # each has its kind of stage
            reporter.update_progress(Progress("trying stages", number, len(plan.stages)))
    return tuple(estimates)


def _collect_data_stats(recipe_file: RecipeFile, plan: Plan, reporter: Reporter) -> _DataStats:
    """The images of a recipe, a few of which are read; for UNKNOWN ones where its folder is missing."""
    data = recipe_file.recipe.data
    if not all(Path(root).exists() for root in data.roots):
        return _DataStats(DEFAULT_NUM_IMAGES, 0, data.batch_size, None)
    dataset = load_dataset(recipe_file, reporter)
    num_train, num_val = len(dataset.splits["train"]), len(dataset.splits["val"])
    return _DataStats(num_train, num_val, min(data.batch_size, num_train), _measure_read_seconds(plan, dataset))


def _measure_read_seconds(plan: Plan, dataset: ImageDataset) -> float:
    data, samples = plan.recipe.data, dataset.splits["train"]
    subset = samples[:: max(1, len(samples) // NUM_READ_IMAGES)][:NUM_READ_IMAGES]
    transform = build_train_transform(plan.preprocessing, data.augment)
    with ImageLoader(subset, transform, len(subset), LoaderConfig(dataset.root, data.on_corrupt_image, 0)) as loader:
        return measure_seconds(lambda: [None for _ in loader.batches(rng_key=(plan.recipe.seed, "reading"))]) / len(
            subset
        )


def _estimate_feature_cache(context: _EstimateContext, stage: AnyStagePlan) -> _FeatureCacheEstimate | None:
    """What the frozen part of a stage will take, as `open_stage_data` and `fit_head_stage` decide; None where the network
    stays whole."""
    plan, freezing, classifier = context.plan, stage.frozen_names, context.classifier
    if not freezing.parameters or (isinstance(stage, StagePlan) and stage.stage.cache == "off"):
        return None
    cut = cut_model(classifier.model, freezing.parameters, freezing.modules, plan.preprocessing.image_size)
    if cut is None or cut.is_uncut:
        return None
    cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision)
    num_train, num_val = context.data_stats.num_train, context.data_stats.num_val
    num_views, num_forward_images = 1, num_train + num_val
    if isinstance(stage, StagePlan):
        num_views = count_views(stage.stage, build_train_transform(plan.preprocessing, plan.recipe.data.augment))
        num_forward_images = count_forward_images(stage.stage.epochs, num_train, num_val)
    num_records = num_views * num_train + num_val
    num_bytes = num_records * cache.backbone.row_bytes
    uncached_seconds, cached_seconds = estimate_cache_gain(cache.backbone, num_forward_images, num_records, num_bytes)
    is_cached = fits_in_cache(num_bytes) and (
        isinstance(stage, HeadFitPlan)
        or cache.backbone.row_bytes <= ALWAYS_CACHE_BYTES
        or cached_seconds < uncached_seconds
    )
    num_images, seconds = (num_records, cached_seconds) if is_cached else (num_forward_images, uncached_seconds)
    return _FeatureCacheEstimate(
        cut, num_bytes if is_cached else 0, num_images * context.overlap_reading(seconds / num_images)
    )


def _estimate_steps(
    context: _EstimateContext, stage: StagePlan, cache_estimate: _FeatureCacheEstimate | None
) -> StageEstimate:
    data_stats, epochs = context.data_stats, stage.stage.epochs
    step_inputs = create_step_inputs(context.classifier, cache_estimate.cut if cache_estimate else None)
    profile = profile_step(context.classifier, stage, step_inputs, data_stats.batch_size, context.process_bytes)
    batch_ratio = data_stats.batch_size / profile.batch_size
    step_seconds, forward_seconds = profile.step_seconds * batch_ratio, profile.forward_seconds / profile.batch_size
    train_seconds_per_image, val_seconds_per_image = step_seconds / data_stats.batch_size, forward_seconds
    if cache_estimate is None:
        train_seconds_per_image, val_seconds_per_image = (
            context.overlap_reading(train_seconds_per_image),
            context.overlap_reading(val_seconds_per_image),
        )
    model = context.classifier.model
    model_bytes = sum(list_tensor_bytes([*model.parameters(), *model.buffers()]))
    gradient_bytes = sum(list_tensor_bytes(p for p in model.parameters() if p.requires_grad))
    memory = MemoryBreakdown(
        parameters=model_bytes,
        gradients=gradient_bytes,
        optimizer=profile.optimizer_bytes,
        activations=round(profile.activation_bytes * batch_ratio),
        working=round(
            max(
                0,
                (profile.peak_bytes or 0)
                - model_bytes
                - gradient_bytes
                - profile.optimizer_bytes
                - profile.activation_bytes,
            )
            * batch_ratio
        ),
        process=context.process_bytes if context.classifier.device.type == "cpu" else 0,
    )
    # Each stage is validated once before its first step.
    compute_seconds = (
        epochs * train_seconds_per_image * data_stats.num_train
        + (epochs + 1) * val_seconds_per_image * data_stats.num_val
    )
    return _create_stage_estimate(
        context,
        stage,
        cache_estimate,
        memory,
        epochs=epochs,
        measured_batch=profile.batch_size,
        seconds_per_step=step_seconds,
        seconds_per_validation_image=forward_seconds,
        seconds=compute_seconds + (cache_estimate.seconds if cache_estimate else 0.0),
    )


def _estimate_head_fit(
    context: _EstimateContext, stage: HeadFitPlan, cache_estimate: _FeatureCacheEstimate | None
) -> StageEstimate:
    data_stats, model = context.data_stats, context.classifier.model
    step_inputs = create_step_inputs(context.classifier, cache_estimate.cut if cache_estimate else None)
    small_batch = step_inputs.random_batch(min(data_stats.batch_size, NUM_FORWARD_IMAGES))
    model.eval()
    with torch.inference_mode():
        step_inputs.eval_forward(small_batch)
        forward_seconds = measure_seconds(
            lambda: step_inputs.eval_forward(small_batch), context.classifier.device
        ) / min(data_stats.batch_size, NUM_FORWARD_IMAGES)
    num_features, num_images = context.plan.head.in_features, min(data_stats.num_train, NUM_FIT_IMAGES)
    generator = np.random.default_rng(0)
    labels = np.arange(num_images) % len(context.classifier.classes)
    features = (
        generator.normal(size=(num_images, num_features))
        + generator.normal(size=(len(context.classifier.classes), num_features))[labels]
    )
    probe_data = ProbeData(features, labels, np.ones(num_images), None, len(context.classifier.classes))
    fit_seconds = measure_seconds(lambda: fit_logistic_head(probe_data, 0, "")) * data_stats.num_train / num_images
    memory = MemoryBreakdown(
        parameters=sum(list_tensor_bytes([*model.parameters(), *model.buffers()])),
        gradients=0,
        optimizer=0,
        activations=0,
        working=3
        * 8
        * num_features
        * data_stats.num_train,  # float64: the values, and standardised those of a fold and its rest
        process=context.process_bytes if context.classifier.device.type == "cpu" else 0,
    )
    total_forward_seconds = (forward_seconds if cache_estimate else context.overlap_reading(forward_seconds)) * (
        data_stats.num_train + data_stats.num_val
    )
    return _create_stage_estimate(
        context,
        stage,
        cache_estimate,
        memory,
        epochs=1,
        measured_batch=data_stats.batch_size,
        seconds_per_step=None,
        seconds_per_validation_image=forward_seconds,
        seconds=total_forward_seconds + fit_seconds + (cache_estimate.seconds if cache_estimate else 0.0),
    )


def _create_stage_estimate(
    context: _EstimateContext,
    stage: AnyStagePlan,
    cache_estimate: _FeatureCacheEstimate | None,
    memory: MemoryBreakdown,
    **fields: Any,
) -> StageEstimate:
    data_stats = context.data_stats
    return StageEstimate(
        stage=stage.stage.name,
        images=data_stats.num_train,
        validation_images=data_stats.num_val,
        from_data=data_stats.read_seconds is not None,
        batch_size=data_stats.batch_size,
        seconds_per_image_read=data_stats.read_seconds,
        kept_bytes=cache_estimate.num_bytes if cache_estimate else 0,
        seconds_frozen=cache_estimate.seconds if cache_estimate else 0.0,
        memory=memory,
        memory_bytes=sum(memory.to_dict().values()),
        **fields,
    )
