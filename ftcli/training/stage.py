"""One stage of a run: its optimizer, progress, profiler and data, and how it is saved, interrupted and finished."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from ftcli.errors import RunError
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.models.freezing import (
    check_frozen_unchanged,
    hash_tensors,
    list_frozen_tensors,
    list_norm_and_bias,
    set_requires_grad,
)
from ftcli.planning import AnyStagePlan, HeadFitPlan
from ftcli.recipe.schema import Stage
from ftcli.results import EpochMetrics, ProgressTask, Reporter, StageResult
from ftcli.training.checkpointing import CheckpointManager, StageState
from ftcli.training.optim import build_optimizer
from ftcli.training.profiler import StageProfiler
from ftcli.training.setup import RunSetup
from ftcli.training.signals import GracefulStop
from ftcli.training.stage_data import StageData


@dataclass
class StageContext:
    """The context of a stage during training. `data` is set when its loaders are open."""

    setup: RunSetup
    plan: AnyStagePlan
    reporter: Reporter
    stop: GracefulStop
    optimizer: torch.optim.Optimizer
    state: StageState
    profiler: StageProfiler
    data: StageData = field(init=False)

    @classmethod
    def create(
        cls,
        setup: RunSetup,
        plan: AnyStagePlan,
        saved_progress: Mapping[str, Any] | None,
        reporter: Reporter,
        stop: GracefulStop,
    ) -> StageContext:
        """Freeze parameters and build the optimizer; restore the progress saved in a last.pt of this stage if given.

        Raises RunError if the frozen tensors are not those that the stage started with.
        """
        model = setup.classifier.model
        state = None if saved_progress is None else StageState(**saved_progress["state"])
        profiler = StageProfiler(setup.classifier.device, state.times if state else None)
        set_requires_grad(model, plan.frozen_names)
        optimizer = _create_optimizer(model, plan)
        frozen_tensors = list_frozen_tensors(model, plan.frozen_names)
        if state is None or saved_progress is None:
            state = StageState(plan.stage.name, hash_tensors(frozen_tensors))
        else:
            optimizer.load_state_dict(saved_progress["optimizer"])
            check_frozen_unchanged(state.frozen_digests, frozen_tensors, state.stage)
        return cls(setup, plan, reporter, stop, optimizer, state, profiler)

    @property
    def model(self) -> nn.Module:
        return self.setup.classifier.model

    @property
    def seed(self) -> int:
        return self.setup.plan.recipe.seed

    @property
    def stage(self) -> Stage:
        """The recipe's settings of a stage with epochs."""
        assert isinstance(self.plan.stage, Stage)
        return self.plan.stage

    @property
    def checkpointer(self) -> CheckpointManager:
        return self.setup.checkpointer

    def task(self, name: str) -> ProgressTask:
        """Return a task that reports to the run's reporter and raises StopRequestedError after a signal."""
        return ProgressTask(name, self.reporter, self.stop.is_set)

    def record_epoch(
        self,
        val_outputs: EvalOutputs,
        *,
        seconds: float,
        lr: float | None = None,
        train_loss: float | None = None,
        train_accuracy: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Add the metrics of the next epoch to the history, save if a save is due, and report the epoch.

        `lr` is the learning rate of the epoch's last step. Raises RunError if the validation loss is not finite.
        """
        epoch, val_loss = self.state.epoch + 1, compute_loss(val_outputs)
        self.checkpointer.skipped.update(val_outputs.skipped)
        if not math.isfinite(val_loss):
            self.abort_on_nonfinite_loss(f"epoch {epoch}, validation", val_loss, lr)
        metrics = EpochMetrics(
            stage=self.state.stage,
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=compute_accuracy(val_outputs),
            lr=lr,
            seconds=round(seconds, 3),
            images_per_second=images_per_second,
        )
        self.state.epoch = epoch
        self.state.reset_epoch_sums()
        self.state.times = self.profiler.state_dict()
        with self.profiler.measure("checkpoints"):
            is_run_best = self.checkpointer.on_epoch_end(metrics, self.model, self.optimizer, self.state)
        num_epochs = 1 if isinstance(self.plan, HeadFitPlan) else self.plan.stage.epochs
        self.reporter.log_epoch(metrics, num_epochs, is_run_best)

    def interrupt(self, position: str) -> NoReturn:
        """Save the progress after a signal and raise RunInterruptedError with the command that resumes the run."""
        self._save()
        raise self.stop.create_error(
            f"Stopped in stage {self.state.stage}, {position}; "
            f"continue with: ftcli train --resume {self.checkpointer.run_dir.last_checkpoint}"
        )

    def abort_on_nonfinite_loss(self, position: str, loss: float, lr: float | None) -> NoReturn:
        """Save the progress and raise RunError. `lr` is the learning rate of the last step; None before the first."""
        if lr is None:
            details, remedy = "", "check the weights, or set precision: float32"
        else:
            key = f"stages.{self.state.stage}"
            details, remedy = f" at learning rate {lr:g}", f"lower {key}.optimizer.lr or set {key}.clip_grad_norm"
        saved_note = ""
        if self.checkpointer.history:
            self._save()
            saved_note = f"; the best checkpoint so far is {self.checkpointer.run_dir.best_checkpoint}"
        raise RunError(f"stage {self.state.stage}, {position}: the loss is {loss}{details}; {remedy}{saved_note}")

    def save_after_error(self) -> None:
        """Save the progress if an epoch has been validated and this step is not saved yet."""
        if self.checkpointer.history:
            self.state.times = self.profiler.state_dict()
            self.checkpointer.save_if_stale(self.model, self.optimizer, self.state)

    def finish(self) -> StageResult:
        """Check the frozen tensors, save, load the stage's best weights into the model and return the stage's result.

        Raises RunError if a frozen tensor changed.
        """
        frozen_tensors = list_frozen_tensors(self.model, self.plan.frozen_names)
        check_frozen_unchanged(self.state.frozen_digests, frozen_tensors, self.state.stage)
        with self.profiler.measure("checkpoints"):
            self.state.times = self.profiler.state_dict()
            if not self.setup.ends_run(self.plan):  # otherwise `save_final` follows immediately
                self.checkpointer.save_if_stale(self.model, self.optimizer, self.state)
            self.checkpointer.restore_best(self.state.stage, self.model)
        num_trainable = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return self.checkpointer.add_stage_result(self.state, num_trainable, self.profiler)

    def _save(self) -> None:
        self.state.times = self.profiler.state_dict()
        self.checkpointer.save(self.model, self.optimizer, self.state)


def _create_optimizer(model: nn.Module, plan: AnyStagePlan) -> torch.optim.Optimizer:
    if isinstance(plan, HeadFitPlan):  # takes no steps, but last.pt contains an optimizer state
        return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad])
    return build_optimizer(model, plan.stage.optimizer, plan.lr_mults, list_norm_and_bias(model))
