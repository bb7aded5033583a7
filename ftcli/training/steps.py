"""One step: a batch, its loss, and what it moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.batches import Batch
from ftcli.data.changes import apply_changes
from ftcli.errors import RunError
from ftcli.training.workshop import Bench, Workshop


def take_step(shop: Workshop, bench: Bench, batch: Batch) -> tuple[float, int]:
    """Take a step of a stage; returns the loss and how many images were right before it. A loss that is not finite
    moves nothing."""
    stage, ledger = bench.plan.stage, bench.ledger
    labels = batch.labels.to(shop.job.classifier.device, non_blocking=True)
    with ledger.measure("forward"):
        try:
            logits = bench.course.training(_change(batch, shop.job.classifier.device))
        except ValueError as error:
            if len(batch.paths) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise RunError(
                f"stage {stage.name}: BatchNorm cannot take statistics from a batch of one image ({batch.paths[0]}); "
                f"raise data.batch_size, or set stages.{stage.name}.batch_norm: frozen"
            ) from error
        loss = _compute_loss(logits, labels, batch.weights, shop.mean_weight, stage.label_smoothing)
        value = float(loss.detach())
    bench.optimizer.zero_grad(set_to_none=True)
    if math.isfinite(value):
        with ledger.measure("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with ledger.measure("optimizer"):
            if stage.clip_grad_norm is not None:
                _clip(shop.model, stage.clip_grad_norm)
            bench.optimizer.step()
    return value, _count_right(logits.detach(), labels)


def _change(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """The values of a batch after the changes that were left to the device."""
    if not batch.changes:
        return batch.values
    (images,) = (value.to(device, non_blocking=True) for value in batch.values)
    return (apply_changes(images, [change.to(device) for change in batch.changes]),)


def _compute_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, mean_weight: float | None, smoothing: float
) -> Tensor:
    """The mean cross-entropy of a batch, each image's times its weight over the mean weight of the training images."""
    if mean_weight is None:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    losses = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return (losses * (weights / mean_weight).to(logits.dtype).to(logits.device)).mean()


def _clip(model: nn.Module, norm: float) -> None:
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], norm)


def _count_right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) == labels).sum())
