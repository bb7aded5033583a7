"""Head fitting: the last layer of a stage is fitted by logistic regression on the features of the frozen backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.loader import ImageLoader
from ftcli.data.samples import Sample
from ftcli.errors import RecipeError, RunError, StopRequestedError
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.head_features import capture_io
from ftcli.evaluation.logits import EvalOutputs, image_forward, predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.features.cache import FeatureRequest
from ftcli.features.pipeline import NoCut, create_pipeline
from ftcli.features.probes import LogisticHead, ProbeData, check_probe_labels, fit_logistic_head
from ftcli.models.freezing import list_frozen_tensors, set_requires_grad
from ftcli.planning import HeadFitPlan
from ftcli.results import EpochMetrics, StageResult, format_count
from ftcli.runtime import autocast
from ftcli.training.checkpointing import StageState
from ftcli.training.profiler import StageProfiler
from ftcli.training.proof import hash_tensors
from ftcli.training.setup import create_loader_config
from ftcli.training.stage import Trainer, finish_stage, save_and_interrupt
from ftcli.training.stage_data import StageData, plan_head_fit_cache

_ResumableState = tuple[torch.optim.Optimizer, StageState, StageProfiler]


@dataclass(frozen=True)
class HeadActivations:
    """The inputs (n, features) in float32 of the last layer for a split, and the outputs of the network."""

    inputs: Tensor
    outputs: EvalOutputs


def fit_head_stage(trainer: Trainer, plan: HeadFitPlan, saved_progress: Mapping[str, Any] | None) -> StageResult:
    """Fit the head of a stage and leave its best weights in the model.

    Epoch 0 is the validation before the fit, epoch 1 the one after it. `saved_progress` is the progress of this stage in
    a last.pt. Raises DataError for too few images of a class, RecipeError for a network that computes on the outputs
    of its head, RunError for values that are not finite and for a frozen tensor that changed, and RunInterruptedError
    after a signal, once everything is saved.
    """
    stage, model = plan.stage, trainer.model
    state = None if saved_progress is None else StageState(**saved_progress["state"])
    profiler = StageProfiler(trainer.setup.classifier.device, state.times if state else None)
    set_requires_grad(model, plan.frozen_names)
    location = f"stage {stage.name}, fit"
    layer = find_head_layer(trainer.setup.classifier, trainer.setup.plan.head.path, location)
    optimizer = torch.optim.SGD(layer.parameters())  # takes no step; checkpoints contain the state of an optimizer
    if state is None:
        state = StageState(stage.name, hash_tensors(list_frozen_tensors(model, plan.frozen_names)))
    if state.epoch < 1:
        _check_class_sizes(trainer, plan)
        try:
            with profiler.measure("frozen"), _open_data(trainer, plan) as data:
                split_activations = _capture_head_activations(trainer, plan, layer, data)
        except StopRequestedError:
            save_and_interrupt(trainer, optimizer, state, profiler, "feature extraction")
        _fit_head(trainer, plan, layer, split_activations, (optimizer, state, profiler))
    return finish_stage(trainer, plan, optimizer, state, profiler)


def _check_class_sizes(trainer: Trainer, plan: HeadFitPlan) -> None:
    """Raise DataError for classes that are too small for cross-validation, before features are computed."""
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
def _open_data(trainer: Trainer, plan: HeadFitPlan) -> Iterator[StageData]:
    """Open loaders of train and val as evaluation transforms them: of features, or of images if the model is not cut."""
    setup, task_name = trainer.setup, f"{plan.stage.name}: feature extraction"
    classifier, splits, batch_size = setup.classifier, setup.dataset.splits, setup.plan.recipe.data.batch_size
    loader_config, transform = create_loader_config(setup), classifier.transform
    pipeline = create_pipeline(
        trainer.model, plan.frozen_names, classifier.preprocessing, classifier.device, classifier.precision
    )
    with ExitStack() as stack:
        if isinstance(pipeline, NoCut):
            forward = image_forward(classifier)
            train_loader, val_loader = (
                stack.enter_context(ImageLoader(splits[split], transform, batch_size, loader_config))
                for split in ("train", "val")
            )
            yield StageData(train_loader, val_loader, forward, forward, [None], is_cached=False)
            return
        requests = [
            FeatureRequest(splits[split], transform, [None], trainer.task(f"{task_name}, {split}"))
            for split in ("train", "val")
        ]
        use_cache = plan_head_fit_cache(pipeline.backbone, *(len(request.samples) for request in requests)).fits
        opened = stack.enter_context(pipeline.open(requests, batch_size, loader_config, use_cache))
        forward = pipeline.eval_forward
        yield StageData(opened.loaders[0], opened.loaders[1], forward, forward, [None], opened.is_cached)


def _capture_head_activations(
    trainer: Trainer, plan: HeadFitPlan, layer: nn.Linear, data: StageData
) -> tuple[HeadActivations, HeadActivations]:
    """Return the inputs of the layer for train and val. Raises StopRequestedError."""
    activations = []
    for split, loader in (("train", data.train_loader), ("val", data.val_loader)):
        with capture_io(layer) as (inputs, _):
            task = trainer.task(f"{plan.stage.name}: {split}")
            outputs = predict_logits(trainer.model, data.eval_forward, loader, task)
        trainer.setup.checkpointer.skipped.update(outputs.skipped)
        activations.append(HeadActivations(torch.cat(inputs).float(), outputs))
    return activations[0], activations[1]


def _fit_head(
    trainer: Trainer,
    plan: HeadFitPlan,
    layer: nn.Linear,
    split_activations: tuple[HeadActivations, HeadActivations],
    resumable: _ResumableState,
) -> None:
    """Record the metrics before the fit, unless a resumed run has them, fit the head and record its metrics."""
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
        train_outputs = _apply_head(classifier, layer, train, batch_size)
        metrics = _compute_epoch_metrics(plan, 1, _apply_head(classifier, layer, val, batch_size))
    sample_weights = None if trainer.mean_sample_weight is None else torch.tensor([sample.weight for sample in samples])
    metrics = replace(
        metrics,
        train_loss=_compute_weighted_loss(train_outputs, sample_weights, trainer.mean_sample_weight),
        train_accuracy=compute_accuracy(train_outputs),
        seconds=round(time.perf_counter() - start_time, 3),
    )
    trainer.reporter.info(
        f"Stage {plan.stage.name}: fitted the head to {format_count(len(samples), 'image')} with C = {fitted_head.C:g}, "
        f"chosen by {fitted_head.folds}-fold cross-validation (loss {fitted_head.held_out_loss:.4f})"
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
    """Return the mean cross-entropy, each image weighted by its weight over the mean weight of the training images."""
    if sample_weights is None or mean_sample_weight is None:
        return compute_loss(outputs)
    losses = functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none")
    return float((losses * sample_weights.double() / mean_sample_weight).mean())


def find_head_layer(classifier: Classifier, head_path: str, location: str) -> nn.Linear:
    """Return the last layer of a head, a linear layer, and leave the network in eval mode.

    Raises RecipeError, which begins with `location`, unless the outputs of the network are those of the layer.
    """
    module, image_size = classifier.model.get_submodule(head_path), classifier.preprocessing.image_size
    layer = module if isinstance(module, nn.Linear) else list(module.children())[-1]
    assert isinstance(layer, nn.Linear)  # Plan.head_is_linear
    classifier.model.eval()
    with torch.inference_mode(), capture_io(layer) as (_, layer_outputs):
        logits = classifier.compute_logits(torch.zeros((2, 3, image_size, image_size), dtype=torch.uint8))
    if len(layer_outputs) != 1 or not torch.equal(layer_outputs[0].float(), logits.cpu()):
        raise RecipeError(
            f"{location}: the network computes on the outputs of its head, {head_path}, so the head cannot be fitted by "
            "logistic regression; give the stage epochs and an optimizer instead of fit"
        )
    return layer


def _apply_head(classifier: Classifier, layer: nn.Linear, activations: HeadActivations, batch_size: int) -> EvalOutputs:
    """Compute the outputs of the layer for its captured inputs, in the precision of the network."""
    batches = torch.split(activations.inputs, batch_size)
    with torch.inference_mode(), autocast(classifier.device, classifier.precision):
        logits = [layer(batch.to(classifier.device)).float().cpu() for batch in batches]
    return replace(activations.outputs, logits=torch.cat(logits))


def _record_epoch(trainer: Trainer, metrics: EpochMetrics, resumable: _ResumableState) -> None:
    optimizer, state, profiler = resumable
    state.epoch = metrics.epoch
    state.times = profiler.state_dict()
    with profiler.measure("checkpoints"):
        is_run_best = trainer.setup.checkpointer.on_epoch_end(metrics, trainer.model, optimizer, state)
    trainer.reporter.log_epoch(metrics, 1, is_run_best)
