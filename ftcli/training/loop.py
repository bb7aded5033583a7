"""One stage: epochs of steps, each followed by a validation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ftcli.data.batches import Batch
from ftcli.data.loader import epoch_permutation
from ftcli.errors import DataError, FtcliError, RunError, StopRequestedError
from ftcli.evaluation.logits import predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.models.freezing import list_frozen_tensors, list_norm_and_bias, set_requires_grad, set_train_mode
from ftcli.planning import StagePlan, estimate_seconds
from ftcli.recipe.schema import EarlyStopping
from ftcli.results import EpochMetrics, Progress, StageResult, format_count, format_duration
from ftcli.runtime import derive_seed, seed_step
from ftcli.training.checkpointing import CheckpointManager, StageState
from ftcli.training.optim import build_optimizer, lr_at_step, set_lr
from ftcli.training.profiler import StageProfiler
from ftcli.training.proof import hash_tensors
from ftcli.training.stage import StageContext, Trainer, abort_on_nonfinite_loss, finish_stage, save_and_interrupt
from ftcli.training.stage_data import open_stage_data
from ftcli.training.steps import take_step


def fit_stage(trainer: Trainer, plan: StagePlan, saved_progress: Mapping[str, Any] | None) -> StageResult:
    """Train one stage and leave its best weights in the model.

    `resumed` is the progress in a last.pt of this stage; it goes on exactly there. Raises RunError for a loss that is
    not finite and for a frozen tensor that moved, RunInterruptedError after a signal, when everything is saved.
    """
    stage, model, checkpointer = plan.stage, trainer.model, trainer.setup.checkpointer
    state = None if saved_progress is None else StageState(**saved_progress["state"])
    profiler = StageProfiler(trainer.setup.classifier.device, state.times if state else None)
    set_requires_grad(model, plan.frozen_names)
    optimizer = build_optimizer(model, stage.optimizer, plan.lr_mults, list_norm_and_bias(model))
    if saved_progress is not None:
        optimizer.load_state_dict(saved_progress["optimizer"])
    frozen_digests = hash_tensors(list_frozen_tensors(model, plan.frozen_names))
    if state is None:
        state = StageState(stage.name, frozen_digests)
    try:
        with (
            _save_on_error(trainer, optimizer, state, profiler),
            open_stage_data(trainer.setup, plan, profiler, trainer.task(stage.name), frozen_digests) as stage_data,
        ):
            context = StageContext(plan, optimizer, state, profiler, stage_data)
            checkpointer.reset_save_timer()
            while state.epoch < stage.epochs and not should_stop_early(
                _list_val_losses(checkpointer, stage.name), stage.early_stopping
            ):
                if state.epoch >= 0:
                    _train_one_epoch(trainer, context)
                _validate(trainer, context)
                if state.epoch == 0:
                    trainer.reporter.info(_stage_banner(trainer, context))
    except StopRequestedError:
        save_and_interrupt(trainer, optimizer, state, profiler, "feature extraction")
    return finish_stage(trainer, plan, optimizer, state, profiler)


@contextmanager
def _save_on_error(
    trainer: Trainer, optimizer: torch.optim.Optimizer, state: StageState, profiler: StageProfiler
) -> Iterator[None]:
    """Save what was reached where a fault ends the context, once anything was measured; the fault is what is told."""
    try:
        yield
    except FtcliError:
        if trainer.setup.checkpointer.history:
            state.times = profiler.state_dict()
            with suppress(RunError):  # of a full disk
                trainer.setup.checkpointer.save_if_stale(trainer.model, optimizer, state)
        raise


def should_stop_early(val_losses: Sequence[float], early_stopping: EarlyStopping | None) -> bool:
    """Whether the last `patience` validation losses brought none lower by more than `min_delta` than the best."""
    if early_stopping is None:
        return False
    best_loss, epochs_since_best = math.inf, 0
    for loss in val_losses:
        if loss < best_loss - early_stopping.min_delta:
            best_loss, epochs_since_best = loss, 0
        else:
            epochs_since_best += 1
    return epochs_since_best >= early_stopping.patience


def _list_val_losses(checkpointer: CheckpointManager, stage_name: str) -> list[float]:
    return [metrics.val_loss for metrics in checkpointer.history if metrics.stage == stage_name]


def _train_one_epoch(trainer: Trainer, context: StageContext) -> None:
    plan, state, profiler, train_loader = context.plan, context.state, context.profiler, context.stage_data.train_loader
    stage, epoch = plan.stage, state.epoch + 1
    steps_per_epoch = train_loader.count_batches(merge_last=True)
    permutation = epoch_permutation(trainer.seed, stage.name, epoch, len(train_loader.samples))
    set_train_mode(trainer.model, plan.frozen_names)
    seconds_before = state.training_seconds
    start_time = time.perf_counter()
    batches = train_loader.batches(
        permutation, rng_key=context.stage_data.key_for_epoch(state.epoch), start=state.step, merge_last=True
    )
    while (batch := _next_batch(batches, profiler)) is not None:
        trainer.setup.checkpointer.skipped.update(batch.skip_messages)
        if batch.paths:
            lr = lr_at_step(
                stage.schedule,
                stage.optimizer.lr,
                state.epoch * steps_per_epoch + state.step,
                steps_per_epoch,
                stage.epochs,
            )
            set_lr(context.optimizer, lr)
            seed_step(derive_seed(trainer.seed, stage.name, epoch, "step", state.step), trainer.setup.classifier.device)
            loss, num_correct = take_step(trainer, context, batch)
            if not math.isfinite(loss):
                abort_on_nonfinite_loss(
                    trainer, context, f"epoch {epoch}, step {state.step + 1} of {steps_per_epoch}", loss, lr
                )
            state.loss_sum += loss * len(batch.paths)
            state.correct += num_correct
            state.num_samples += len(batch.paths)
        state.step += 1
        state.training_seconds = seconds_before + time.perf_counter() - start_time
        trainer.reporter.update_progress(
            Progress(
                f"{stage.name} {epoch}/{stage.epochs}",
                state.step,
                steps_per_epoch,
                state.num_samples / state.training_seconds,
                f"loss {state.loss_sum / max(1, state.num_samples):.4f}",
            )
        )
        if trainer.stop.is_set():
            position = f"epoch {epoch}, step {state.step} of {steps_per_epoch}"
            save_and_interrupt(trainer, context.optimizer, state, profiler, position)
    profiler.synchronize()
    if not state.num_samples:
        raise DataError(
            f"stage {stage.name}: not one of the {len(permutation)} training images can be read; the first: "
            f"{min(trainer.setup.checkpointer.skipped)}"
        )


def _next_batch(batches: Iterator[Batch], profiler: StageProfiler) -> Batch | None:
    with profiler.measure("data"):
        return next(batches, None)


def _validate(trainer: Trainer, context: StageContext) -> None:
    plan, state, profiler, checkpointer = context.plan, context.state, context.profiler, trainer.setup.checkpointer
    stage, epoch = plan.stage, state.epoch + 1
    start_time = time.perf_counter()
    try:
        with profiler.measure("validation"):
            outputs = predict_logits(
                trainer.model,
                context.stage_data.eval_forward,
                context.stage_data.val_loader,
                trainer.task(f"{stage.name} {epoch} validation"),
            )
    except StopRequestedError:
        save_and_interrupt(trainer, context.optimizer, state, profiler, f"the validation of epoch {epoch}")
    checkpointer.skipped.update(outputs.skipped)
    val_loss = compute_loss(outputs)
    steps_per_epoch = context.stage_data.train_loader.count_batches(merge_last=True)
    lr = (
        lr_at_step(stage.schedule, stage.optimizer.lr, epoch * steps_per_epoch - 1, steps_per_epoch, stage.epochs)
        if epoch
        else None
    )
    if not math.isfinite(val_loss):
        abort_on_nonfinite_loss(trainer, context, f"epoch {epoch}, validation", val_loss, lr or stage.optimizer.lr)
    training_seconds = state.training_seconds
    metrics = EpochMetrics(
        stage=stage.name,
        epoch=epoch,
        train_loss=state.loss_sum / state.num_samples if state.num_samples else None,
        train_accuracy=state.correct / state.num_samples if state.num_samples else None,
        val_loss=val_loss,
        val_accuracy=compute_accuracy(outputs),
        lr=lr,
        seconds=round(training_seconds + time.perf_counter() - start_time, 3),
        images_per_second=round(state.num_samples / training_seconds, 2) if state.num_samples else None,
    )
    state.epoch = epoch
    state.reset_epoch_sums()
    state.times = profiler.state_dict()
    with profiler.measure("checkpoints"):
        is_run_best = checkpointer.on_epoch_end(metrics, trainer.model, context.optimizer, state)
    trainer.reporter.log_epoch(metrics, stage.epochs, is_run_best)


def _stage_banner(trainer: Trainer, context: StageContext) -> str:
    """What the stage will do, and how long it and all that are left will take, where a validation of the whole network
    has told what an image costs."""
    plan, stage_data, stages = context.plan, context.stage_data, trainer.setup.remaining_stages
    steps_per_epoch = stage_data.train_loader.count_batches(merge_last=True)
    epochs = f"{format_count(plan.stage.epochs, 'epoch')} of {format_count(steps_per_epoch, 'step')}"
    if stage_data.is_cached:
        return f"Stage {plan.stage.name}: {epochs}"
    num_train, num_val = len(stage_data.train_loader.samples), len(stage_data.val_loader.samples)
    seconds_per_image = (
        trainer.setup.checkpointer.history[-1].seconds / num_val
    )  # with the start of its processes, so rather too long
    remaining_plans = stages[stages.index(plan) :]
    seconds = [estimate_seconds(other, num_train, num_val, seconds_per_image) for other in remaining_plans]
    total_time = (
        f", about {format_duration(sum(seconds))} for the {len(remaining_plans)} stages"
        if len(remaining_plans) > 1
        else ""
    )
    return f"Stage {plan.stage.name}: {epochs}, about {format_duration(seconds[0])}{total_time}"
