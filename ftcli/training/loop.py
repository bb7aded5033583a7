"""One stage: epochs of steps, each followed by a validation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ftcli.data.batches import Batch
from ftcli.data.loading import order_epoch
from ftcli.errors import DataError, FtcliError, RunError
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import compute_outputs
from ftcli.models.freezing import apply_freezing, list_frozen_tensors, list_norm_and_bias, set_modes
from ftcli.planning import StagePlan, estimate_seconds
from ftcli.recipe.schema import EarlyStopping
from ftcli.results import EpochRow, Progress, StageResult, tell_count, tell_duration
from ftcli.runtime import derive_seed, seed_step
from ftcli.training.course import open_course
from ftcli.training.journal import Journal, StageState
from ftcli.training.ledger import Ledger
from ftcli.training.optim import build_optimizer, rate_at, set_rate
from ftcli.training.proof import digest_tensors
from ftcli.training.steps import take_step
from ftcli.training.workshop import Bench, Workshop, end_stage, give_up, save_and_stop


def run_stage(shop: Workshop, plan: StagePlan, resumed: Mapping[str, Any] | None) -> StageResult:
    """Train one stage and leave its best weights in the model.

    `resumed` is the progress in a last.pt of this stage; it goes on exactly there. Raises RunError for a loss that is
    not finite and for a frozen tensor that moved, Interrupted after a signal, when everything is saved.
    """
    stage, model, journal = plan.stage, shop.model, shop.job.journal
    state = None if resumed is None else StageState(**resumed["state"])
    ledger = Ledger(shop.job.classifier.device, state.times if state else None)
    apply_freezing(model, plan.freezing)
    optimizer = build_optimizer(model, stage.optimizer, plan.rates, list_norm_and_bias(model))
    if resumed is not None:
        optimizer.load_state_dict(resumed["optimizer"])
    digests = digest_tensors(list_frozen_tensors(model, plan.freezing))
    if state is None:
        state = StageState(stage.name, digests)
    with (
        _save_reached(shop, optimizer, state, ledger),
        open_course(shop.job, plan, ledger, shop.reporter, shop.stop, digests) as course,
    ):
        if course is None:
            save_and_stop(shop, optimizer, state, ledger, "the computing of its frozen part")
        bench = Bench(plan, optimizer, state, ledger, course)
        journal.begin()
        while state.epoch < stage.epochs and not is_stale(_losses(journal, stage.name), stage.early_stopping):
            if state.epoch >= 0:
                _train_epoch(shop, bench)
            _measure(shop, bench)
            if state.epoch == 0:
                shop.reporter.say(_foretell(shop, bench))
    return end_stage(shop, plan, optimizer, state, ledger)


@contextmanager
def _save_reached(
    shop: Workshop, optimizer: torch.optim.Optimizer, state: StageState, ledger: Ledger
) -> Iterator[None]:
    """Save what was reached where a fault ends the context, once anything was measured; the fault is what is told."""
    try:
        yield
    except FtcliError:
        if shop.job.journal.rows:
            state.times = ledger.keep()
            with suppress(RunError):  # of a full disk
                shop.job.journal.catch_up(shop.model, optimizer, state)
        raise


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


def _train_epoch(shop: Workshop, bench: Bench) -> None:
    plan, state, ledger, feed = bench.plan, bench.state, bench.ledger, bench.course.train
    stage, epoch = plan.stage, state.epoch + 1
    steps = feed.count_batches(merge_last=True)
    order = order_epoch(shop.seed, stage.name, epoch, len(feed.samples))
    set_modes(shop.model, plan.freezing)
    before = state.training_seconds
    began = time.perf_counter()
    batches = feed.batches(order, draw=bench.course.draw(state.epoch), start=state.step, merge_last=True)
    while (batch := _await(batches, ledger)) is not None:
        shop.job.journal.skipped.update(batch.broken)
        if batch.paths:
            lr = rate_at(stage.schedule, stage.optimizer.lr, state.epoch * steps + state.step, steps, stage.epochs)
            set_rate(bench.optimizer, lr)
            seed_step(derive_seed(shop.seed, stage.name, epoch, "step", state.step), shop.job.classifier.device)
            loss, right = take_step(shop, bench, batch)
            if not math.isfinite(loss):
                give_up(shop, bench, f"epoch {epoch}, step {state.step + 1} of {steps}", loss, lr)
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
            place = f"epoch {epoch}, step {state.step} of {steps}"
            save_and_stop(shop, bench.optimizer, state, ledger, place)
    ledger.settle()
    if not state.seen:
        raise DataError(
            f"stage {stage.name}: not one of the {len(order)} training images can be read; the first: "
            f"{min(shop.job.journal.skipped)}"
        )


def _await(batches: Iterator[Batch], ledger: Ledger) -> Batch | None:
    with ledger.measure("data"):
        return next(batches, None)


def _measure(shop: Workshop, bench: Bench) -> None:
    plan, state, ledger, journal = bench.plan, bench.state, bench.ledger, shop.job.journal
    stage, epoch = plan.stage, state.epoch + 1
    began = time.perf_counter()
    with ledger.measure("validation"):
        outputs = compute_outputs(
            shop.model,
            bench.course.evaluating,
            bench.course.val,
            shop.reporter,
            f"{stage.name} {epoch} validation",
            shop.stop.is_set,
        )
    if outputs is None:
        save_and_stop(shop, bench.optimizer, state, ledger, f"the validation of epoch {epoch}")
    journal.skipped.update(outputs.skipped)
    val_loss = measure_loss(outputs)
    steps = bench.course.train.count_batches(merge_last=True)
    lr = rate_at(stage.schedule, stage.optimizer.lr, epoch * steps - 1, steps, stage.epochs) if epoch else None
    if not math.isfinite(val_loss):
        give_up(shop, bench, f"epoch {epoch}, validation", val_loss, lr or stage.optimizer.lr)
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
    state.times = ledger.keep()
    with ledger.measure("checkpoints"):
        best = journal.record(row, shop.model, bench.optimizer, state)
    shop.reporter.epoch(row, stage.epochs, best)


def _foretell(shop: Workshop, bench: Bench) -> str:
    """What the stage will do, and how long it and all that are left will take, where a validation of the whole network
    has told what an image costs."""
    plan, course, stages = bench.plan, bench.course, shop.job.stages
    steps = course.train.count_batches(merge_last=True)
    epochs = f"{tell_count(plan.stage.epochs, 'epoch')} of {tell_count(steps, 'step')}"
    if course.kept:
        return f"Stage {plan.stage.name}: {epochs}"
    images, checked = len(course.train.samples), len(course.val.samples)
    forward = shop.job.journal.rows[-1].seconds / checked  # with the start of its processes, so rather too long
    left = stages[stages.index(plan) :]
    seconds = [estimate_seconds(other, images, checked, forward) for other in left]
    total = f", about {tell_duration(sum(seconds))} for the {len(left)} stages" if len(left) > 1 else ""
    return f"Stage {plan.stage.name}: {epochs}, about {tell_duration(seconds[0])}{total}"
