"""What the stages of a run work with, and how they end before their time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import torch
from torch import nn

from ftcli.errors import RunError
from ftcli.models.freezing import list_frozen_tensors
from ftcli.planning import AnyPlan, StagePlan
from ftcli.results import Reporter, StageResult
from ftcli.training.course import Course
from ftcli.training.interruption import StopSignals
from ftcli.training.journal import StageState
from ftcli.training.ledger import Ledger
from ftcli.training.preparation import Job
from ftcli.training.proof import prove_unmoved


@dataclass(frozen=True)
class Workshop:
    """What all stages of a run share."""

    job: Job
    reporter: Reporter
    stop: StopSignals

    @property
    def model(self) -> nn.Module:
        return self.job.classifier.model

    @property
    def seed(self) -> int:
        return self.job.plan.recipe.seed

    def ends_with(self, plan: AnyPlan) -> bool:
        """Whether the run has come to its end when this stage has: what is left is to note that."""
        return plan is self.job.stages[-1] and "test" not in self.job.images.splits

    @cached_property
    def mean_weight(self) -> float | None:
        """The mean weight of the training images; None where all weigh the same, so that weights change nothing."""
        weights = [sample.weight for sample in self.job.images.splits["train"]]
        return None if min(weights) == max(weights) else math.fsum(weights) / len(weights)


@dataclass(frozen=True)
class Bench:
    """What a stage works with."""

    plan: StagePlan
    optimizer: torch.optim.Optimizer
    state: StageState
    ledger: Ledger
    course: Course


def save_and_stop(
    shop: Workshop, optimizer: torch.optim.Optimizer, state: StageState, ledger: Ledger, place: str
) -> NoReturn:
    """Save everything after a signal and raise Interrupted, which tells how to go on."""
    state.times = ledger.keep()
    journal = shop.job.journal
    journal.save(shop.model, optimizer, state)
    last = journal.folder.last
    raise shop.stop.error(f"Stopped in stage {state.stage}, {place}; go on with: ftcli train --resume {last}")


def end_stage(
    shop: Workshop, plan: AnyPlan, optimizer: torch.optim.Optimizer, state: StageState, ledger: Ledger
) -> StageResult:
    """Prove that what was frozen did not move, write what is not written yet, put the best weights into the model and
    sum up. Raises RunError for a frozen tensor that moved."""
    model, journal = shop.model, shop.job.journal
    prove_unmoved(state.frozen, list_frozen_tensors(model, plan.freezing), state.stage)
    with ledger.measure("checkpoints"):
        state.times = ledger.keep()
        if not shop.ends_with(plan):
            journal.catch_up(model, optimizer, state)
        journal.restore_best(state.stage, model)
    return journal.close_stage(state, sum(p.numel() for p in model.parameters() if p.requires_grad), ledger)


def give_up(shop: Workshop, bench: Bench, place: str, loss: float, lr: float) -> NoReturn:
    """Raise RunError for a loss that is not finite. What was best until then is saved."""
    journal, stage = shop.job.journal, bench.plan.stage.name
    kept = ""
    if journal.rows:
        bench.state.times = bench.ledger.keep()
        journal.save(shop.model, bench.optimizer, bench.state)
        kept = f"; the best checkpoint so far stays at {journal.folder.best_loss}"
    raise RunError(
        f"stage {stage}, {place}: the loss is {loss} at learning rate {lr:g}; lower stages.{stage}.optimizer.lr or set "
        f"stages.{stage}.clip_grad_norm{kept}"
    )
