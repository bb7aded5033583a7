"""A stage whose head is solved for, from what the frozen backbone gives for the images as evaluation sees them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ftcli.caching.eviction import fits_in_cache
from ftcli.data.batches import BatchLoader
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.errors import RunError
from ftcli.evaluation.logits import EvalOutputs, ForwardFn, image_forward, predict_logits, suffix_forward
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.features.cache import CacheFullError, FeatureCache, ViewSpec
from ftcli.features.loaders import FeatureLoader
from ftcli.features.probes import check_probe_labels
from ftcli.features.solving import LogisticHead, ProbeData, fit_logistic_head
from ftcli.models.cut import cut_model
from ftcli.models.freezing import list_frozen_tensors, set_requires_grad
from ftcli.planning import HeadFitPlan
from ftcli.results import EpochMetrics, StageResult, format_count
from ftcli.training.checkpointing import StageState
from ftcli.training.profiler import StageProfiler
from ftcli.training.proof import hash_tensors
from ftcli.training.reading import HeadActivations, apply_head, capture_io, find_head_layer
from ftcli.training.setup import create_loader_config
from ftcli.training.stage import Trainer, finish_stage, save_and_interrupt

_ResumableState = tuple[torch.optim.Optimizer, StageState, StageProfiler]


def fit_head_stage(trainer: Trainer, plan: HeadFitPlan, saved_progress: Mapping[str, Any] | None) -> StageResult:
    """Solve the head of one stage and leave its best weights in the model.

    Epoch 0 is the measurement before, epoch 1 the solved head. `resumed` is the progress in a last.pt of this stage:
    what it lacks is done again, with the same result. Raises DataError for images that no head can be chosen from,
    RecipeError for a network that goes on behind its head, RunError for values that are not finite and for a frozen
    tensor that moved, RunInterruptedError after a signal, when everything is saved.
    """
    stage, model = plan.stage, trainer.model
    state = None if saved_progress is None else StageState(**saved_progress["state"])
    profiler = StageProfiler(trainer.setup.classifier.device, state.times if state else None)
    set_requires_grad(model, plan.frozen_names)
    location = f"stage {stage.name}, fit"
    layer = find_head_layer(trainer.setup.classifier, trainer.setup.plan.head.path, location)
    optimizer = torch.optim.SGD(layer.parameters())  # checkpoints hold one; this never takes a step
    if state is None:
        state = StageState(stage.name, hash_tensors(list_frozen_tensors(model, plan.frozen_names)))
    if state.epoch < 1:
        _check_class_sizes(trainer, plan)
        with profiler.measure("frozen"), _open_loaders(trainer, plan) as loaders:
            split_activations = None if loaders is None else _capture_head_activations(trainer, plan, layer, loaders)
        if split_activations is None:
            save_and_interrupt(trainer, optimizer, state, profiler, "the computing of its frozen part")
        _fit_head(trainer, plan, layer, split_activations, (optimizer, state, profiler))
    return finish_stage(trainer, plan, optimizer, state, profiler)


def _check_class_sizes(trainer: Trainer, plan: HeadFitPlan) -> None:
    """Raise DataError for classes too small for cross-validation, before anything is computed."""
    samples = trainer.setup.dataset.splits["train"]
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    location = f"stage {plan.stage.name}, fit"
    check_probe_labels(
        labels, np.full(len(labels), "train"), trainer.setup.dataset.classes, location, _list_groups(samples)
    )


def _list_groups(samples: Sequence[Sample]) -> NDArray[np.str_] | None:
    if all(sample.group is None for sample in samples):
        return None
    return np.array([f"path {sample.path}" if sample.group is None else sample.group for sample in samples])


@contextmanager
def _open_loaders(trainer: Trainer, plan: HeadFitPlan) -> Iterator[tuple[BatchLoader, BatchLoader, ForwardFn] | None]:
    """Train and val as evaluation sees them, and how to look at them: what the frozen part gives, kept on the disk or,
    where there is no room, computed with the same bits on the CPU; or images, where the network cannot be cut. None if
    a signal came meanwhile."""
    setup = trainer.setup
    classifier, data, splits = setup.classifier, setup.plan.recipe.data, setup.dataset.splits
    freezing, loader_config, transform = plan.frozen_names, create_loader_config(setup), classifier.transform
    cut = cut_model(trainer.model, freezing.parameters, freezing.modules, setup.plan.preprocessing.image_size)
    with ExitStack() as stack:
        if cut is None or cut.is_uncut:
            loaders = (
                ImageLoader(splits[split], transform, data.batch_size, loader_config) for split in ("train", "val")
            )
            train_loader, val_loader = (stack.enter_context(loader) for loader in loaders)
            yield train_loader, val_loader, image_forward(classifier)
            return
        forward = suffix_forward(cut.suffix, classifier)
        cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision)
        has_room = fits_in_cache(cache.backbone.row_bytes * sum(len(splits[split]) for split in ("train", "val")))
        cached_loaders = _open_cached(trainer, plan.stage.name, cache, loader_config) if has_room else None
        if cached_loaders is None and trainer.stop.is_set():
            yield None
            return
        if cached_loaders is None:
            uncached_loaders = [
                FeatureLoader(cache.backbone, splits[split], transform, data.batch_size, loader_config, nullcontext)
                for split in ("train", "val")
            ]
            for uncached_loader in uncached_loaders:
                stack.enter_context(uncached_loader)
            cached_loaders = uncached_loaders[0], uncached_loaders[1]
        yield *cached_loaders, forward


def _open_cached(
    trainer: Trainer, stage_name: str, cache: FeatureCache, loader_config: LoaderConfig
) -> tuple[BatchLoader, BatchLoader] | None:
    """Train and val, kept; None if a signal came meanwhile, or what is in use leaves no room."""
    setup, loaders = trainer.setup, list[BatchLoader]()
    batch_size, view = setup.plan.recipe.data.batch_size, ViewSpec(setup.classifier.transform, None)
    for split in ("train", "val"):
        samples, task = setup.dataset.splits[split], f"{stage_name}: frozen part, {split}"
        try:
            loader = cache.get_or_compute(
                samples, [view], batch_size, loader_config, trainer.reporter, task, trainer.stop.is_set
            )
        except CacheFullError:
            trainer.reporter.info(
                f"{task}: the cache has no room for what the network gives, so it is computed without it"
            )
            return None
        if loader is None:
            return None
        loaders.append(loader)
    return loaders[0], loaders[1]


def _capture_head_activations(
    trainer: Trainer, plan: HeadFitPlan, layer: nn.Linear, loaders: tuple[BatchLoader, BatchLoader, ForwardFn]
) -> tuple[HeadActivations, HeadActivations] | None:
    """What the layer reads for train and val; None if a signal came meanwhile."""
    activations = []
    for split, loader in zip(("train", "val"), loaders[:2], strict=True):
        with capture_io(layer) as (inputs, _):
            task = f"{plan.stage.name}: {split}"
            outputs = predict_logits(trainer.model, loaders[2], loader, trainer.reporter, task, trainer.stop.is_set)
        if outputs is None:
            return None
        trainer.setup.checkpointer.skipped.update(outputs.skipped)
        activations.append(HeadActivations(torch.cat(inputs), outputs))
    return activations[0], activations[1]


def _fit_head(
    trainer: Trainer,
    plan: HeadFitPlan,
    layer: nn.Linear,
    split_activations: tuple[HeadActivations, HeadActivations],
    resumable: _ResumableState,
) -> None:
    """Note the start, unless that was done, and then the solved head."""
    (train, val), (_, state, profiler) = split_activations, resumable
    if state.epoch < 0:
        metrics = _compute_epoch_metrics(plan, 0, val.outputs)
        _record_epoch(trainer, replace(metrics, seconds=round(profiler.total_seconds, 3)), resumable)
    start_time = time.perf_counter()
    samples_by_path = {sample.path: sample for sample in trainer.setup.dataset.splits["train"]}
    samples = [samples_by_path[path] for path in train.outputs.paths]
    with profiler.measure("solving"):
        fitted_head = _fit_logistic_head(trainer, plan, train, samples)
        with torch.no_grad():
            layer.weight.copy_(fitted_head.weight)
            layer.bias.copy_(fitted_head.bias)
    with profiler.measure("validation"):
        batch_size, classifier = trainer.setup.plan.recipe.data.batch_size, trainer.setup.classifier
        train_outputs = apply_head(classifier, layer, train, batch_size)
        metrics = _compute_epoch_metrics(plan, 1, apply_head(classifier, layer, val, batch_size))
    sample_weights = None if trainer.mean_sample_weight is None else torch.tensor([sample.weight for sample in samples])
    metrics = replace(
        metrics,
        train_loss=_compute_weighted_loss(train_outputs, sample_weights, trainer.mean_sample_weight),
        train_accuracy=compute_accuracy(train_outputs),
        seconds=round(time.perf_counter() - start_time, 3),
    )
    trainer.reporter.info(
        f"Stage {plan.stage.name}: solved with C = {fitted_head.C:g}, chosen in {fitted_head.folds} folds with a "
        f"held-out loss of {fitted_head.held_out_loss:.4f}, from {format_count(len(samples), 'image')}"
    )
    _record_epoch(trainer, metrics, resumable)


def _fit_logistic_head(
    trainer: Trainer, plan: HeadFitPlan, train: HeadActivations, samples: Sequence[Sample]
) -> LogisticHead:
    probe_data = ProbeData(
        train.inputs.numpy(),
        train.outputs.labels.numpy(),
        np.array([sample.weight for sample in samples]),
        _list_groups(samples),
        len(trainer.setup.dataset.classes),
    )
    return fit_logistic_head(probe_data, trainer.seed, f"stage {plan.stage.name}, fit")


def _compute_epoch_metrics(plan: HeadFitPlan, epoch: int, val_outputs: EvalOutputs) -> EpochMetrics:
    val_loss = compute_loss(val_outputs)
    if not math.isfinite(val_loss):
        raise RunError(
            f"stage {plan.stage.name}, epoch {epoch}, validation: the loss is {val_loss}; check the weights, or set "
            "precision: float32"
        )
    return EpochMetrics(
        stage=plan.stage.name,
        epoch=epoch,
        train_loss=None,
        train_accuracy=None,
        val_loss=val_loss,
        val_accuracy=compute_accuracy(val_outputs),
        lr=None,
        seconds=0.0,
        images_per_second=None,
    )


def _compute_weighted_loss(
    outputs: EvalOutputs, sample_weights: Tensor | None, mean_sample_weight: float | None
) -> float:
    """The mean cross-entropy, each image's times its weight over the mean weight of the training images."""
    if sample_weights is None or mean_sample_weight is None:
        return compute_loss(outputs)
    losses = functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none")
    return float((losses * sample_weights.double() / mean_sample_weight).mean())


def _record_epoch(trainer: Trainer, metrics: EpochMetrics, resumable: _ResumableState) -> None:
    optimizer, state, profiler = resumable
    state.epoch = metrics.epoch
    state.times = profiler.state_dict()
    with profiler.measure("checkpoints"):
        is_run_best = trainer.setup.checkpointer.on_epoch_end(metrics, trainer.model, optimizer, state)
    trainer.reporter.log_epoch(metrics, 1, is_run_best)
