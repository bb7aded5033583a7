"""Estimates of the time and memory of a training on this machine, from a few steps of each stage."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftcli.data.batches import Batch
from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, resolve_num_workers
from ftcli.data.transforms import build_train_transform
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.logits import image_forward
from ftcli.features.pipeline import FeaturePipeline, ForwardFn, NoCut, create_pipeline
from ftcli.features.probes import ProbeData, fit_logistic_head
from ftcli.models.factory import build_model
from ftcli.models.freezing import list_norm_and_bias, set_requires_grad, set_train_mode
from ftcli.models.heads import reset_classifier
from ftcli.planning import (
    AnyStagePlan,
    HeadFitPlan,
    Plan,
    StagePlan,
    find_classes,
    load_dataset,
    plan_recipe,
)
from ftcli.recipe.loading import RecipeFile
from ftcli.results import MemoryBreakdown, Progress, Reporter, StageEstimate
from ftcli.runtime import choose_device, count_cores, measure_seconds, raise_on_oom
from ftcli.training.optim import build_optimizer
from ftcli.training.precision import resolve_classifier_precision
from ftcli.training.profiler import StageProfiler
from ftcli.training.stage_data import compute_cache_cost, compute_head_fit_cache_cost
from ftcli.training.step import take_step

NUM_READ_IMAGES = 16
"""Images that are read to measure the time to load one."""
NUM_FORWARD_IMAGES, NUM_FIT_IMAGES = 16, 1000
"""Images of the forward pass, and of the head fit, that are timed for a stage that fits its head."""
DEFAULT_NUM_IMAGES = 1000
"""Training images assumed where the images of a recipe do not exist."""
MAX_PROFILED_STEP_SECONDS = 3.0
"""Seconds that a profiled step may take; slower steps are profiled with a smaller batch."""


@dataclass(frozen=True)
class _DataStats:
    """The number of images, the batch size, and the seconds to load an image, None if the images do not exist."""

    num_train: int
    num_val: int
    batch_size: int
    read_seconds: float | None


@dataclass(frozen=True)
class _EstimateContext:
    """The inputs of all stage estimates. `process_bytes` is the memory of the process before it built a network."""

    plan: Plan
    classifier: Classifier
    data_stats: _DataStats
    process_bytes: int

    def overlap_reading(self, compute_seconds: float) -> float:
        """Return the seconds per image when loading overlaps with computing.

        On a CPU both share the cores, elsewhere the slower one counts, and without workers they take turns.
        """
        num_workers, read_seconds = resolve_num_workers(self.plan.recipe.data.num_workers), self.data_stats.read_seconds
        if read_seconds is None:
            return compute_seconds
        if not num_workers:
            return compute_seconds + read_seconds
        if self.classifier.device.type == "cpu":
            return compute_seconds + read_seconds / min(num_workers, count_cores())
        return max(compute_seconds, read_seconds / num_workers)


@dataclass(frozen=True)
class _FeatureEstimate:
    """The pipeline of a stage whose model is cut, the bytes of its cached features, and the seconds in which they are
    computed and loaded."""

    pipeline: FeaturePipeline
    num_bytes: int
    seconds: float


def estimate_training(recipe_file: RecipeFile, reporter: Reporter) -> tuple[StageEstimate, ...]:
    """Estimate the time and memory of each stage of a recipe from steps on random inputs with random weights.

    Feature extraction is estimated for an empty cache; compiling is not included. Memory is counted (parameters,
    gradients, optimizer state, activations, the process) except for the working memory of a step, which is measured.
    Nothing is downloaded or written. Raises RecipeError and DataError for a recipe or data that are invalid, RunError
    if memory runs out.
    """
    plan = plan_recipe(recipe_file)
    class_names = find_classes(recipe_file, reporter)
    data_stats = _collect_data_stats(recipe_file, plan, reporter)
    device = choose_device("auto")
    process_bytes = measure_peak_bytes(device)
    with torch.random.fork_rng(devices=[]), raise_on_oom():
        model = build_model(plan.recipe, plan.preprocessing.image_size)
        reset_classifier(model, plan.recipe, plan.head.path, len(class_names))
        classifier = Classifier.create(model, plan.preprocessing, class_names, device, plan.recipe.precision)
        classifier = resolve_classifier_precision(
            classifier, plan.recipe.backbone.name, data_stats.batch_size, {}, save=False
        )
        context = _EstimateContext(plan, classifier, data_stats, process_bytes)
        estimates = []
        for number, stage in enumerate(plan.stages, 1):
            set_requires_grad(model, stage.frozen_names)
            features = _estimate_features(context, stage)
            estimates.append(
                _estimate_head_fit(context, stage, features)
                if isinstance(stage, HeadFitPlan)
                else _estimate_steps(context, stage, features)
            )
            reporter.update_progress(Progress("trying stages", number, len(plan.stages)))
    return tuple(estimates)


def _collect_data_stats(recipe_file: RecipeFile, plan: Plan, reporter: Reporter) -> _DataStats:
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
        seconds = measure_seconds(lambda: list(loader.batches(rng_key=(plan.recipe.seed, "reading"))))
    return seconds / len(subset)


def _estimate_features(context: _EstimateContext, stage: AnyStagePlan) -> _FeatureEstimate | None:
    """Estimate the features of a stage, cached as in `open_stage_data` or `fit_head_stage`; None if it is uncut."""
    plan, classifier, data_stats = context.plan, context.classifier, context.data_stats
    if not stage.frozen_names.parameters or (isinstance(stage, StagePlan) and stage.stage.cache == "off"):
        return None
    pipeline = create_pipeline(
        classifier.model, stage.frozen_names, classifier.preprocessing, classifier.device, classifier.precision
    )
    if isinstance(pipeline, NoCut):
        return None
    if isinstance(stage, HeadFitPlan):
        cache_cost = compute_head_fit_cache_cost(pipeline.backbone, data_stats.num_train, data_stats.num_val)
        is_cached = cache_cost.fits
    else:
        transform = build_train_transform(plan.preprocessing, plan.recipe.data.augment)
        cache_cost = compute_cache_cost(
            pipeline.backbone, stage.stage, transform, data_stats.num_train, data_stats.num_val
        )
        is_cached = cache_cost.fits and cache_cost.is_caching_faster
    if not is_cached:
        seconds_per_image = cache_cost.uncached_seconds / cache_cost.num_forward_images
        return _FeatureEstimate(pipeline, 0, cache_cost.num_forward_images * context.overlap_reading(seconds_per_image))
    seconds_per_image = cache_cost.cached_seconds / cache_cost.num_records
    return _FeatureEstimate(
        pipeline, cache_cost.num_bytes, cache_cost.num_records * context.overlap_reading(seconds_per_image)
    )


def _estimate_steps(context: _EstimateContext, stage: StagePlan, features: _FeatureEstimate | None) -> StageEstimate:
    data_stats, epochs = context.data_stats, stage.stage.epochs
    step_inputs = create_step_inputs(context.classifier, features.pipeline if features else None)
    profile = profile_step(context.classifier, stage, step_inputs, data_stats.batch_size, context.process_bytes)
    batch_ratio = data_stats.batch_size / profile.batch_size
    step_seconds, forward_seconds = profile.step_seconds * batch_ratio, profile.forward_seconds / profile.batch_size
    train_seconds_per_image, val_seconds_per_image = step_seconds / data_stats.batch_size, forward_seconds
    if features is None:
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
    # Each stage validates once before its first step.
    compute_seconds = (
        epochs * train_seconds_per_image * data_stats.num_train
        + (epochs + 1) * val_seconds_per_image * data_stats.num_val
    )
    return _create_stage_estimate(
        context,
        stage,
        features,
        memory,
        epochs=epochs,
        measured_batch=profile.batch_size,
        seconds_per_step=step_seconds,
        seconds_per_validation_image=forward_seconds,
        seconds=compute_seconds + (features.seconds if features else 0.0),
    )


def _estimate_head_fit(
    context: _EstimateContext, stage: HeadFitPlan, features: _FeatureEstimate | None
) -> StageEstimate:
    data_stats, model = context.data_stats, context.classifier.model
    step_inputs = create_step_inputs(context.classifier, features.pipeline if features else None)
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
    head_inputs = (
        generator.normal(size=(num_images, num_features))
        + generator.normal(size=(len(context.classifier.classes), num_features))[labels]
    )
    probe_data = ProbeData(head_inputs, labels, np.ones(num_images), None, len(context.classifier.classes))
    fit_seconds = measure_seconds(lambda: fit_logistic_head(probe_data, 0, "")) * data_stats.num_train / num_images
    memory = MemoryBreakdown(
        parameters=sum(list_tensor_bytes([*model.parameters(), *model.buffers()])),
        gradients=0,
        optimizer=0,
        activations=0,
        # In float64: the features, and the standardized ones of a fold and of the other folds.
        working=3 * 8 * num_features * data_stats.num_train,
        process=context.process_bytes if context.classifier.device.type == "cpu" else 0,
    )
    total_forward_seconds = (forward_seconds if features else context.overlap_reading(forward_seconds)) * (
        data_stats.num_train + data_stats.num_val
    )
    return _create_stage_estimate(
        context,
        stage,
        features,
        memory,
        epochs=1,
        measured_batch=data_stats.batch_size,
        seconds_per_step=None,
        seconds_per_validation_image=forward_seconds,
        seconds=total_forward_seconds + fit_seconds + (features.seconds if features else 0.0),
    )


def _create_stage_estimate(
    context: _EstimateContext,
    stage: AnyStagePlan,
    features: _FeatureEstimate | None,
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
        kept_bytes=features.num_bytes if features else 0,
        seconds_frozen=features.seconds if features else 0.0,
        memory=memory,
        memory_bytes=sum(memory.to_dict().values()),
        **fields,
    )


@dataclass(frozen=True)
class StepProfile:
    """The time and memory of a step and of a validation pass with `batch_size` images.

    `peak_bytes` is the peak memory above that of the process; None if an earlier stage reached a higher peak.
    """

    batch_size: int
    step_seconds: float
    forward_seconds: float
    activation_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class StepInputs:
    """The forward functions of a stage and a function that creates a batch of random inputs for them."""

    train_forward: ForwardFn
    eval_forward: ForwardFn
    random_batch: Callable[[int], tuple[Tensor, ...]]


def create_step_inputs(classifier: Classifier, pipeline: FeaturePipeline | None) -> StepInputs:
    """Return the step inputs of the whole network, or of its suffix if there is a pipeline."""
    if pipeline is not None:
        shapes = [tensor.shape for tensor in pipeline.cut.boundary]
        return StepInputs(
            pipeline.train_forward,
            pipeline.eval_forward,
            lambda count: tuple(_random_tensor(count, shape) for shape in shapes),
        )
    forward, image_size = image_forward(classifier), classifier.preprocessing.image_size
    return StepInputs(
        forward, forward, lambda count: (torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8),)
    )


def profile_step(
    classifier: Classifier, stage: StagePlan, step_inputs: StepInputs, batch_size: int, process_bytes: int
) -> StepProfile:
    """Profile a step: two warm-up steps on few images, then steps on a full batch or on fewer images if it is slow.

    The frozen parameters of the stage must require no gradients yet. `process_bytes` is the memory of the process
    before it built a network.
    """
    model = classifier.model
    optimizer = build_optimizer(model, stage.stage.optimizer, stage.lr_mults, list_norm_and_bias(model))

    profiler = StageProfiler(classifier.device)

    def step(inputs: tuple[Tensor, ...]) -> None:
        num_images = len(inputs[0])
        labels = torch.arange(num_images) % len(classifier.classes)
        batch = Batch(inputs, labels, torch.ones(num_images), ("random",) * num_images)
        take_step(model, step_inputs.train_forward, batch, optimizer, stage.stage, profiler)

    set_train_mode(model, stage.frozen_names)
    warmup_size = min(batch_size, 4)
    step(step_inputs.random_batch(warmup_size))
    step_seconds = measure_seconds(lambda: step(step_inputs.random_batch(warmup_size)), classifier.device)
    profiled_size = choose_profiled_batch_size(batch_size, warmup_size, step_seconds)
    inputs = step_inputs.random_batch(profiled_size)
    memory_counter, peak_before = ActivationMemoryCounter(model), measure_peak_bytes(classifier.device)
    with memory_counter:
        step(inputs)
    step_seconds = min(measure_seconds(lambda: step(inputs), classifier.device) for _ in range(2))
    optimizer_bytes = sum(list_tensor_bytes(value for state in optimizer.state.values() for value in state.values()))
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.inference_mode():
        forward_seconds = measure_seconds(lambda: step_inputs.eval_forward(inputs), classifier.device)
    peak_bytes = measure_peak_bytes(classifier.device)
    return StepProfile(
        profiled_size,
        step_seconds,
        forward_seconds,
        memory_counter.num_bytes,
        optimizer_bytes,
        peak_bytes - process_bytes if peak_bytes > peak_before else None,
    )


def choose_profiled_batch_size(batch_size: int, warmup_size: int, seconds: float) -> int:
    """Return the batch size of a profiled step, given the seconds of a step with `warmup_size` images.

    It is the full batch, or as many images as MAX_PROFILED_STEP_SECONDS allows, and at least 2 for BatchNorm.
    """
    return max(2, min(batch_size, int(MAX_PROFILED_STEP_SECONDS / max(seconds, 1e-9) * warmup_size)))


class ActivationMemoryCounter(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes saved for the backward pass, each storage once, without those of the model's own tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.num_bytes = 0
        self._counted_storages = {
            tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]
        }
        super().__init__(self._count, lambda packed: packed)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._counted_storages:
            self._counted_storages.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor.detach()  # returning the tensor itself would create a reference cycle


def _random_tensor(count: int, shape: tuple[int, ...]) -> Tensor:
    values = torch.rand((count, *shape))
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def list_tensor_bytes(values: Iterable[object]) -> list[int]:
    """Return the bytes of each tensor among the values."""
    return [value.numel() * value.element_size() for value in values if isinstance(value, Tensor)]


def measure_peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far, of tensors on a GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
