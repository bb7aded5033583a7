"""Head fitting: the last layer of a stage is fitted by logistic regression on the features of the frozen backbone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ftcli.data.loader import ImageLoader
from ftcli.data.samples import Sample
from ftcli.errors import RecipeError
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.head_features import capture_io
from ftcli.evaluation.logits import EvalOutputs, image_forward, predict_logits
from ftcli.evaluation.metrics import compute_accuracy
from ftcli.features.cache import FeatureRequest
from ftcli.features.pipeline import NoCut, create_pipeline
from ftcli.features.probes import LogisticHead, ProbeData, check_probe_labels, fit_logistic_head
from ftcli.planning import HeadFitPlan
from ftcli.results import format_count
from ftcli.runtime import autocast
from ftcli.training.setup import create_loader_config
from ftcli.training.stage import StageContext
from ftcli.training.stage_data import StageData, compute_head_fit_cache_cost
from ftcli.training.step import weighted_cross_entropy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadActivations:
    """The inputs (n, features) in float32 of the last layer for a split, and the outputs of the network."""

    inputs: Tensor
    outputs: EvalOutputs


def fit_head_stage(context: StageContext, plan: HeadFitPlan) -> None:
    """Fit the head of a stage. Epoch 0 is the validation before the fit, epoch 1 the one after it.

    Raises DataError for too few images of a class, RecipeError for a network that computes on the outputs of its head,
    RunError for values that are not finite, and StopRequestedError.
    """
    layer = find_head_layer(context.setup.classifier, context.setup.plan.head.path, f"stage {plan.stage.name}, fit")
    if context.state.epoch >= 1:
        return
    _check_class_sizes(context, plan)
    with context.profiler.measure("frozen"), _open_data(context, plan) as context.data:
        train, val = _capture_head_activations(context, layer)
    if context.state.epoch < 0:
        context.record_epoch(val.outputs, seconds=context.profiler.total_seconds)
    _fit_head(context, layer, train, val)


def _check_class_sizes(context: StageContext, plan: HeadFitPlan) -> None:
    """Raise DataError for classes that are too small for cross-validation, before features are computed."""
    samples, classes = context.setup.dataset.splits["train"], context.setup.dataset.classes
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    location = f"stage {plan.stage.name}, fit"
    check_probe_labels(labels, np.full(len(labels), "train"), classes, location, _list_groups(samples))


def _list_groups(samples: Sequence[Sample]) -> NDArray[np.str_] | None:
    if all(sample.group is None for sample in samples):
        return None
    return np.array([f"path {sample.path}" if sample.group is None else sample.group for sample in samples])


@contextmanager
def _open_data(context: StageContext, plan: HeadFitPlan) -> Iterator[StageData]:
    """Open loaders of train and val in evaluation: of features, or of images if the model is not cut."""
    setup, task_name = context.setup, f"{plan.stage.name}: feature extraction"
    classifier, splits, batch_size = setup.classifier, setup.dataset.splits, setup.plan.recipe.data.batch_size
    loader_config, transform = create_loader_config(setup), classifier.transform
    pipeline = create_pipeline(
        context.model, plan.frozen_names, classifier.preprocessing, classifier.device, classifier.precision
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
            FeatureRequest(splits[split], transform, [None], context.task(f"{task_name}, {split}"))
            for split in ("train", "val")
        ]
        use_cache = compute_head_fit_cache_cost(pipeline.backbone, *(len(request.samples) for request in requests)).fits
        opened = stack.enter_context(pipeline.open(requests, batch_size, loader_config, use_cache))
        forward = pipeline.eval_forward
        yield StageData(opened.loaders[0], opened.loaders[1], forward, forward, [None], opened.is_cached)


def _capture_head_activations(context: StageContext, layer: nn.Linear) -> tuple[HeadActivations, HeadActivations]:
    """Return the inputs of the layer for train and val. Raises StopRequestedError."""
    activations = []
    for split, loader in (("train", context.data.train_loader), ("val", context.data.val_loader)):
        with capture_io(layer) as (inputs, _):
            task = context.task(f"{context.state.stage}: {split}")
            outputs = predict_logits(context.model, context.data.eval_forward, loader, task)
        context.checkpointer.skipped.update(outputs.skipped)
        activations.append(HeadActivations(torch.cat(inputs).float(), outputs))
    return activations[0], activations[1]


def _fit_head(context: StageContext, layer: nn.Linear, train: HeadActivations, val: HeadActivations) -> None:
    """Fit the head and record its metrics."""
    start_time, setup = time.perf_counter(), context.setup
    samples_by_path = {sample.path: sample for sample in setup.dataset.splits["train"]}
    samples = [samples_by_path[path] for path in train.outputs.paths]
    with context.profiler.measure("solving"):
        fitted_head = _fit_logistic_head(context, train, samples)
        with torch.no_grad():
            layer.weight.copy_(fitted_head.weight)
            layer.bias.copy_(fitted_head.bias)
    with context.profiler.measure("validation"):
        batch_size, classifier = setup.plan.recipe.data.batch_size, setup.classifier
        train_outputs = _apply_head(classifier, layer, train, batch_size)
        val_outputs = _apply_head(classifier, layer, val, batch_size)
    sample_weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float64)
    train_loss = weighted_cross_entropy(
        train_outputs.logits.double(), train_outputs.labels, sample_weights, setup.mean_sample_weight
    )
    logger.info(
        f"Stage {context.state.stage}: fitted the head to {format_count(len(samples), 'image')} with "
        f"C = {fitted_head.C:g}, chosen by {fitted_head.folds}-fold cross-validation "
        f"(loss {fitted_head.held_out_loss:.4f})"
    )
    context.record_epoch(
        val_outputs,
        seconds=time.perf_counter() - start_time,
        train_loss=float(train_loss),
        train_accuracy=compute_accuracy(train_outputs),
    )


def _fit_logistic_head(context: StageContext, train: HeadActivations, samples: Sequence[Sample]) -> LogisticHead:
    probe_data = ProbeData(
        train.inputs.numpy(),
        train.outputs.labels.numpy(),
        np.array([sample.weight for sample in samples]),
        _list_groups(samples),
        len(context.setup.dataset.classes),
    )
    return fit_logistic_head(probe_data, context.seed, f"stage {context.state.stage}, fit")


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
            f"{location}: the network computes on the outputs of its head, {head_path}, so the head cannot be fitted "
            "by logistic regression; give the stage epochs and an optimizer instead of fit"
        )
    return layer


def _apply_head(classifier: Classifier, layer: nn.Linear, activations: HeadActivations, batch_size: int) -> EvalOutputs:
    """Compute the outputs of the layer for its captured inputs, in the precision of the network."""
    batches = torch.split(activations.inputs, batch_size)
    with torch.inference_mode(), autocast(classifier.device, classifier.precision):
        logits = [layer(batch.to(classifier.device)).float().cpu() for batch in batches]
    return replace(activations.outputs, logits=torch.cat(logits))
