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
from ftcli.planning import AnyStagePlan, StagePlan
from ftcli.results import ProgressTask, Reporter, StageResult
from ftcli.training.checkpointing import StageState
from ftcli.training.profiler import StageProfiler
from ftcli.training.proof import check_frozen_unchanged
from ftcli.training.setup import RunSetup
from ftcli.training.signals import GracefulStop
from ftcli.training.stage_data import StageData


@dataclass(frozen=True)
class Trainer:
    """What all stages of a run share."""

    setup: RunSetup
    reporter: Reporter
    stop: GracefulStop

    @property
    def model(self) -> nn.Module:
        return self.setup.classifier.model

    @property
    def seed(self) -> int:
        return self.setup.plan.recipe.seed

    def task(self, name: str) -> ProgressTask:
        """Return a task that reports to the run's reporter and that a signal stops."""
        return ProgressTask(name, self.reporter, self.stop.is_set)

    def ends_after(self, plan: AnyStagePlan) -> bool:
        """Whether the run has come to its end when this stage has: what is left is to note that."""
        return plan is self.setup.remaining_stages[-1] and "test" not in self.setup.dataset.splits

    @cached_property
    def mean_sample_weight(self) -> float | None:
        """The mean weight of the training images; None where all weigh the same, so that weights change nothing."""
        sample_weights = [sample.weight for sample in self.setup.dataset.splits["train"]]
        return None if min(sample_weights) == max(sample_weights) else math.fsum(sample_weights) / len(sample_weights)


@dataclass(frozen=True)
class StageContext:
    """What a stage works with."""

    plan: StagePlan
    optimizer: torch.optim.Optimizer
    state: StageState
    profiler: StageProfiler
    stage_data: StageData


def save_and_interrupt(
    trainer: Trainer, optimizer: torch.optim.Optimizer, state: StageState, profiler: StageProfiler, position: str
) -> NoReturn:
    """Save everything after a signal and raise RunInterruptedError, which tells how to go on."""
    state.times = profiler.state_dict()
    checkpointer = trainer.setup.checkpointer
    checkpointer.save(trainer.model, optimizer, state)
    last_checkpoint = checkpointer.folder.last
    raise trainer.stop.error(
        f"Stopped in stage {state.stage}, {position}; go on with: ftcli train --resume {last_checkpoint}"
    )


def finish_stage(
    trainer: Trainer, plan: AnyStagePlan, optimizer: torch.optim.Optimizer, state: StageState, profiler: StageProfiler
) -> StageResult:
    """Prove that what was frozen did not move, write what is not written yet, put the best weights into the model and
    sum up. Raises RunError for a frozen tensor that moved."""
    model, checkpointer = trainer.model, trainer.setup.checkpointer
    check_frozen_unchanged(state.frozen_digests, list_frozen_tensors(model, plan.frozen_names), state.stage)
    with profiler.measure("checkpoints"):
        state.times = profiler.state_dict()
        if not trainer.ends_after(plan):
            checkpointer.save_if_stale(model, optimizer, state)
        checkpointer.restore_best(state.stage, model)
    return checkpointer.summarize_stage(state, sum(p.numel() for p in model.parameters() if p.requires_grad), profiler)


def abort_on_nonfinite_loss(trainer: Trainer, context: StageContext, position: str, loss: float, lr: float) -> NoReturn:
    """Raise RunError for a loss that is not finite. What was best until then is saved."""
    checkpointer, stage_name = trainer.setup.checkpointer, context.plan.stage.name
    checkpoint_note = ""
    if checkpointer.history:
        context.state.times = context.profiler.state_dict()
        checkpointer.save(trainer.model, context.optimizer, context.state)
        checkpoint_note = f"; the best checkpoint so far stays at {checkpointer.folder.best_loss}"
    raise RunError(
        f"stage {stage_name}, {position}: the loss is {loss} at learning rate {lr:g}; lower stages.{stage_name}.optimizer.lr or set "
        f"stages.{stage_name}.clip_grad_norm{checkpoint_note}"
    )
