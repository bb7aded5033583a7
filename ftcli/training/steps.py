"""One step: a batch, its loss, and what it moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.batches import Batch
from ftcli.data.transforms import apply_batch_transforms
from ftcli.errors import RunError
from ftcli.training.stage import StageContext, Trainer


def take_step(trainer: Trainer, context: StageContext, batch: Batch) -> tuple[float, int]:
    """Take a step of a stage; returns the loss and how many images were right before it. A loss that is not finite
    moves nothing."""
    stage, profiler = context.plan.stage, context.profiler
    labels = batch.labels.to(trainer.setup.classifier.device, non_blocking=True)
    with profiler.measure("forward"):
        try:
            logits = context.stage_data.train_forward(_apply_batch_transforms(batch, trainer.setup.classifier.device))
        except ValueError as error:
            if len(batch.paths) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise RunError(
                f"stage {stage.name}: BatchNorm cannot take statistics from a batch of one image ({batch.paths[0]}); "
                f"raise data.batch_size, or set stages.{stage.name}.batch_norm: frozen"
            ) from error
        loss = _compute_loss(logits, labels, batch.weights, trainer.mean_sample_weight, stage.label_smoothing)
        loss_value = float(loss.detach())
    context.optimizer.zero_grad(set_to_none=True)
    if math.isfinite(loss_value):
        with profiler.measure("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with profiler.measure("optimizer"):
            if stage.clip_grad_norm is not None:
                _clip_grad_norm(trainer.model, stage.clip_grad_norm)
            context.optimizer.step()
    return loss_value, _count_correct(logits.detach(), labels)


def _apply_batch_transforms(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """The values of a batch after the changes that were left to the device."""
    if not batch.transform_params:
        return batch.inputs
    (images,) = (value.to(device, non_blocking=True) for value in batch.inputs)
    return (apply_batch_transforms(images, [transform.to(device) for transform in batch.transform_params]),)


def _compute_loss(
    logits: Tensor, labels: Tensor, sample_weights: Tensor, mean_sample_weight: float | None, label_smoothing: float
) -> Tensor:
    """The mean cross-entropy of a batch, each image's times its weight over the mean weight of the training images."""
    if mean_sample_weight is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (losses * (sample_weights / mean_sample_weight).to(logits.dtype).to(logits.device)).mean()


def _clip_grad_norm(model: nn.Module, max_norm: float) -> None:
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm)


def _count_correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) == labels).sum())
