"""One stage: epochs of steps, each followed by a validation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.loading import Batch, Loader, order_epoch
from ftcli.errors import DataError, RunError
from ftcli.inference.classifier import Classifier
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import compute_outputs
from ftcli.models.freezing import apply_freezing, list_frozen_tensors, list_norm_and_bias, set_modes
from ftcli.models.states import put_tensors
from ftcli.planning import StagePlan, estimate_seconds
from ftcli.recipe.schema import EarlyStopping
from ftcli.results import EpochRow, Progress, Reporter, StageResult, tell_count, tell_duration
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runtime import derive_seed
from ftcli.training.interruption import StopSignals
from ftcli.training.journal import Journal, StageState
from ftcli.training.optim import build_optimizer, rate_at, set_rate
from ftcli.training.proof import digest_tensors, prove_unmoved


@dataclass(frozen=True)
class Workshop:
    """What all stages of a run share."""

    classifier: Classifier
    train: Loader
    val: Loader
    plans: tuple[StagePlan, ...]
    seed: int
    journal: Journal
    reporter: Reporter
    stop: StopSignals

    @cached_property
    def mean_weight(self) -> float | None:
        """The mean weight of the training images; None where all weigh the same, so that weights change nothing."""
        weights = [sample.weight for sample in self.train.samples]
        return None if min(weights) == max(weights) else math.fsum(weights) / len(weights)


def run_stage(shop: Workshop, plan: StagePlan, resumed: Mapping[str, Any] | None) -> StageResult:
    """Train one stage and leave its best weights in the model.

    `resumed` is the progress in a last.pt of this stage; it goes on exactly there. Raises RunError for a loss that is
    not finite and for a frozen tensor that moved, Interrupted after a signal, when everything is saved.
    """
    stage, model, journal = plan.stage, shop.classifier.model, shop.journal
    apply_freezing(model, plan.freezing)
    optimizer = build_optimizer(model, stage.optimizer, plan.rates, list_norm_and_bias(model))
    if resumed is None:
        state = StageState(stage.name, digest_tensors(list_frozen_tensors(model, plan.freezing)))
    else:
        state = StageState(**resumed["state"])
        optimizer.load_state_dict(resumed["optimizer"])
    while state.epoch < stage.epochs and not is_stale(_losses(journal, stage.name), stage.early_stopping):
        if state.epoch >= 0:
            _train_epoch(shop, plan, optimizer, state)
        _measure(shop, plan, optimizer, state)
        if state.epoch == 0:
            shop.reporter.say(_foretell(shop, plan))
    prove_unmoved(state.frozen, list_frozen_tensors(model, plan.freezing), stage.name)
    put_tensors(model, read_checkpoint(journal.folder.stage(stage.name)).state)
    return journal.close_stage(state, sum(p.numel() for p in model.parameters() if p.requires_grad))


def is_stale(losses: Sequence[float], rule: EarlyStopping | None) -> bool:
    """Whether the last `patience` validation losses brought none lower by more than `min_delta` than the best."""
    if rule is None:
        return False
    best, since = math.inf, 0
    for loss in losses:
        if loss < best - rule.min_delta:
            best, since = loss, 0
        else:
            since += 1
    return since >= rule.patience


def _losses(journal: Journal, stage: str) -> list[float]:
    return [row.val_loss for row in journal.rows if row.stage == stage]


def _train_epoch(shop: Workshop, plan: StagePlan, optimizer: torch.optim.Optimizer, state: StageState) -> None:
    stage, loader, epoch = plan.stage, shop.train, state.epoch + 1
    steps = loader.count_batches(merge_last=True)
    order = order_epoch(shop.seed, stage.name, epoch, len(loader.samples))
    draw = (shop.seed, stage.name, epoch)
    set_modes(shop.classifier.model, plan.freezing)
    before = state.training_seconds
    began = time.perf_counter()
    for batch in loader.batches(order, draw=draw, start=state.step, merge_last=True):
        shop.journal.skipped.update(batch.broken)
        if batch.paths:
            lr = rate_at(stage.schedule, stage.optimizer.lr, state.epoch * steps + state.step, steps, stage.epochs)
            set_rate(optimizer, lr)
            torch.manual_seed(derive_seed(*draw, "step", state.step))
            loss, right = _take_step(shop, plan, optimizer, batch)
            if not math.isfinite(loss):
                raise RunError(_diverged(shop, stage.name, epoch, f"step {state.step + 1} of {steps}", loss, lr))
            state.loss_sum += loss * len(batch.paths)
            state.right += right
            state.seen += len(batch.paths)
        state.step += 1
        state.training_seconds = before + time.perf_counter() - began
        shop.reporter.advance(
            Progress(
                f"{stage.name} {epoch}/{stage.epochs}",
                state.step,
                steps,
                state.seen / state.training_seconds,
                f"loss {state.loss_sum / max(1, state.seen):.4f}",
            )
        )
        if shop.stop.is_set():
            _save_and_stop(shop, optimizer, state, f"epoch {epoch}, step {state.step} of {steps}")
    if not state.seen:
        raise DataError(
            f"stage {stage.name}: not one of the {len(order)} training images can be read; the first: "
            f"{min(shop.journal.skipped)}"
        )


def _take_step(shop: Workshop, plan: StagePlan, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, int]:
    classifier = shop.classifier
    labels = batch.labels.to(classifier.device, non_blocking=True)
    try:
        logits = classifier.compute_logits(batch.images)
    except ValueError as error:
        if len(batch.paths) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise RunError(
            f"stage {plan.stage.name}: BatchNorm cannot take statistics from a batch of one image ({batch.paths[0]}); "
            f"raise data.batch_size, or set stages.{plan.stage.name}.batch_norm: frozen"
        ) from error
    loss = _compute_loss(logits, labels, batch.weights, shop.mean_weight, plan.stage.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    if math.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]
        if plan.stage.clip_grad_norm is not None:
            _clip(classifier.model, plan.stage.clip_grad_norm)
        optimizer.step()
    return value, _count_right(logits.detach(), labels)


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


def _measure(shop: Workshop, plan: StagePlan, optimizer: torch.optim.Optimizer, state: StageState) -> None:
    stage, epoch = plan.stage, state.epoch + 1
    began = time.perf_counter()
    outputs = compute_outputs(
        shop.classifier, shop.val, shop.reporter, f"{stage.name} {epoch} validation", shop.stop.is_set
    )
    if outputs is None:
        _save_and_stop(shop, optimizer, state, f"the validation of epoch {epoch}")
    shop.journal.skipped.update(outputs.skipped)
    val_loss = measure_loss(outputs)
    steps = shop.train.count_batches(merge_last=True)
    lr = rate_at(stage.schedule, stage.optimizer.lr, epoch * steps - 1, steps, stage.epochs) if epoch else None
    if not math.isfinite(val_loss):
        raise RunError(_diverged(shop, stage.name, epoch, "validation", val_loss, lr or stage.optimizer.lr))
    training = state.training_seconds
    row = EpochRow(
        stage=stage.name,
        epoch=epoch,
        train_loss=state.loss_sum / state.seen if state.seen else None,
        train_accuracy=state.right / state.seen if state.seen else None,
        val_loss=val_loss,
        val_accuracy=measure_accuracy(outputs),
        lr=lr,
        seconds=round(training + time.perf_counter() - began, 3),
        images_per_second=round(state.seen / training, 2) if state.seen else None,
    )
    state.epoch = epoch
    state.begin_epoch()
    best = shop.journal.record(row, shop.classifier.model, optimizer, state)
    shop.reporter.epoch(row, stage.epochs, best)


def _save_and_stop(shop: Workshop, optimizer: torch.optim.Optimizer, state: StageState, place: str) -> NoReturn:
    shop.journal.save_last(shop.classifier.model, optimizer, state)
    last = shop.journal.folder.last
    raise shop.stop.error(f"Stopped in stage {state.stage}, {place}; go on with: ftcli train --resume {last}")


def _foretell(shop: Workshop, plan: StagePlan) -> str:
    """How long this stage, and all that are left, will take, from what the first validation took."""
    images, checked = len(shop.train.samples), len(shop.val.samples)
    forward = shop.journal.rows[-1].seconds / checked  # with the start of its processes, so rather too long
    left = shop.plans[shop.plans.index(plan) :]
    seconds = [estimate_seconds(other, images, checked, forward) for other in left]
    steps = shop.train.count_batches(merge_last=True)
    total = f", about {tell_duration(sum(seconds))} for the {len(left)} stages" if len(left) > 1 else ""
    alone = tell_duration(seconds[0])
    epochs = f"{tell_count(plan.stage.epochs, 'epoch')} of {tell_count(steps, 'step')}"
    return f"Stage {plan.stage.name}: {epochs}, about {alone}{total}"


def _diverged(shop: Workshop, stage: str, epoch: int, place: str, loss: float, lr: float) -> str:
    best = shop.journal.folder.best_loss
    kept = f"; the best checkpoint so far stays at {best}" if best.exists() else ""
    return (
        f"stage {stage}, epoch {epoch}, {place}: the loss is {loss} at learning rate {lr:g}; lower "
        f"stages.{stage}.optimizer.lr or set stages.{stage}.clip_grad_norm{kept}"
    )
