"""One training step: forward pass, loss, backward pass, optimizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.batches import Batch
from ftcli.data.transforms import apply_batch_transforms
from ftcli.errors import RunError
from ftcli.features.pipeline import ForwardFn
from ftcli.recipe.schema import Stage
from ftcli.training.profiler import StageProfiler


def take_step(
    model: nn.Module,
    forward: ForwardFn,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    profiler: StageProfiler,
    mean_sample_weight: float | None = None,
) -> tuple[float, int]:
    """Take an optimizer step; return the batch's loss and number of correct images, both from before the step.

    A loss that is not finite changes no parameter. Raises RunError for BatchNorm in train mode with a single image.
    """
    device = next(model.parameters()).device
    labels = batch.labels.to(device, non_blocking=True)
    with profiler.measure("forward"):
        try:
            logits = forward(_apply_batch_transforms(batch, device))
        except ValueError as error:
            if len(batch.labels) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise RunError(
                f"stage {stage.name}: BatchNorm cannot compute statistics from a batch of one image "
                f"({batch.paths[0]}); raise data.batch_size, or set stages.{stage.name}.batch_norm: frozen"
            ) from error
        loss = weighted_cross_entropy(logits, labels, batch.weights, mean_sample_weight, stage.label_smoothing)
        loss_value = float(loss.detach())
    optimizer.zero_grad(set_to_none=True)
    if math.isfinite(loss_value):
        with profiler.measure("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with profiler.measure("optimizer"):
            if stage.clip_grad_norm is not None:
                parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
                nn.utils.clip_grad_norm_(parameters, stage.clip_grad_norm)
            optimizer.step()
    return loss_value, int((logits.detach().argmax(1) == labels).sum())


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sample_weights: Tensor,
    mean_sample_weight: float | None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy, each image weighted relative to the mean weight of the training images.

    With `mean_sample_weight` None all training images weigh the same.
    """
    if mean_sample_weight is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (losses * (sample_weights / mean_sample_weight).to(logits.dtype).to(logits.device)).mean()


def _apply_batch_transforms(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """Return the inputs after the transforms that were deferred to the device."""
    if not batch.transform_params:
        return batch.inputs
    (images,) = (value.to(device, non_blocking=True) for value in batch.inputs)
    return (apply_batch_transforms(images, [params.to(device) for params in batch.transform_params]),)
