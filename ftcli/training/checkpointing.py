"""The checkpoints of a run: the best weights of each stage and of the run, and last.pt to resume from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftcli.models.state_dict import copy_state_dict
from ftcli.results import EpochMetrics, StageResult, StageTimes, TestResult
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ftcli.runs.run_dir import RunDir
from ftcli.training.profiler import StageProfiler

SAVE_INTERVAL_FACTOR = 20.0
"""The interval between saves, as a multiple of the seconds that a save takes: saving costs a stage with short epochs at
most 5% of its time, and a kill loses at most one interval."""


@dataclass
class StageState:
    """The progress of a stage, stored in last.pt.

    `epoch` is the last validated one, -1 before the first validation. `step` counts the steps taken of the next epoch;
    the sums and `training_seconds` are over these steps. `frozen_digests` are the digests of the frozen tensors at the
    start of the stage, `times` is the state of its profiler.
    """

    stage: str
    frozen_digests: dict[str, str]
    epoch: int = -1
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    num_samples: int = 0
    training_seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def reset_epoch_sums(self) -> None:
        """Start the next epoch from zero."""
        self.step, self.loss_sum, self.correct, self.num_samples = 0, 0.0, 0, 0
        self.training_seconds = 0.0


@dataclass
class CheckpointManager:
    """The history and stage results of a run, and the files that store them.

    `checkpoint_template` has what all checkpoints of the run share; `start_times` are the times at which the run was
    started and resumed. Best checkpoints are written before last.pt: after a kill between the two, an epoch is repeated
    with the same bits. Until a save is due, a copy of the best weights is in memory.
    """

    run_dir: RunDir
    checkpoint_template: Checkpoint
    stage_names: tuple[str, ...]
    history: list[EpochMetrics] = field(default_factory=list)
    results: list[StageResult] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    start_times: list[str] = field(default_factory=list)
    fingerprint: str = ""
    _pending_best: tuple[Checkpoint, tuple[Path, ...]] | None = None
    _best: Checkpoint | None = None
    _saved_position: tuple[str, int, int] | None = None
    _last_save_time: float = field(default_factory=time.monotonic)
    _last_save_seconds: float = 0.1

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Restore history, results, skipped images and start times from the progress in last.pt."""
        self.history = [EpochMetrics(**metrics) for metrics in progress["history"]]
        self.results = results_from_dict(progress)
        self.skipped = set(progress["skipped"])
        self.start_times = list(progress["start_times"])

    def list_val_losses(self, stage: str) -> list[float]:
        """Return the validation losses of a stage, in the order of its epochs."""
        return [metrics.val_loss for metrics in self.history if metrics.stage == stage]

    def reset_save_timer(self) -> None:
        """Count the time to the next save from now, when training starts: cached features need no checkpoint."""
        self._last_save_time = time.monotonic()

    def on_epoch_end(
        self, metrics: EpochMetrics, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState
    ) -> bool:
        """Add an epoch to the history, save if a save is due, and return whether its loss is the lowest of the run."""
        is_stage_best = metrics.val_loss < min(self.list_val_losses(metrics.stage), default=float("inf"))
        is_run_best = metrics.val_loss < min((previous.val_loss for previous in self.history), default=float("inf"))
        self.history.append(metrics)
        if is_stage_best:
            paths = (
                self.run_dir.stage_checkpoint(metrics.stage),
                *([self.run_dir.best_checkpoint] if is_run_best else []),
            )
            weights = _copy_weights(model, state.frozen_digests)
            self._pending_best = self._create_best_checkpoint(metrics, weights), paths
        if time.monotonic() - self._last_save_time >= SAVE_INTERVAL_FACTOR * self._last_save_seconds:
            self.save(model, optimizer, state)
        return is_run_best

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """Write the pending best checkpoints, last.pt and metrics.jsonl."""
        start_time = time.monotonic()
        self._write_pending_best()
        progress = {**self._progress_to_dict(), "state": dataclasses.asdict(state), "optimizer": optimizer.state_dict()}
        is_validated = state.epoch >= 0 and state.step == 0  # then the last metrics are those of these weights
        metrics = _val_metrics(self.history[-1]) if is_validated else {}
        self._write_last(model, state.stage, max(state.epoch, 0), metrics, progress)
        self.run_dir.write_metrics(self.history)
        self._saved_position = (state.stage, state.epoch, state.step)
        self._last_save_time = time.monotonic()
        self._last_save_seconds = self._last_save_time - start_time

    def save_if_stale(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """Save unless the last save was at this step."""
        if self._saved_position != (state.stage, state.epoch, state.step):
            self.save(model, optimizer, state)

    def save_final(self, model: nn.Module, test: TestResult | None) -> None:
        """Write the last.pt of a finished run, whose best weights are in the model, and metrics.jsonl."""
        last, best = self.history[-1], min(self.history, key=lambda metrics: metrics.val_loss)
        progress = {**self._progress_to_dict(), "finished": True, "test": None if test is None else test.to_dict()}
        self._write_last(model, last.stage, last.epoch, _val_metrics(best), progress)
        self.run_dir.write_metrics(self.history)

    def restore_best(self, stage: str, model: nn.Module) -> None:
        """Load the best weights of a stage into the model; write them first if they are pending."""
        self._write_pending_best()
        best = self._best if self._best is not None and self._best.stage == stage else None
        copy_state_dict(model, (best or read_checkpoint(self.run_dir.stage_checkpoint(stage))).state)
        self._best = None

    def add_stage_result(
        self, state: StageState, num_trainable_parameters: int, profiler: StageProfiler
    ) -> StageResult:
        """Add the result of a finished stage to the results and return it."""
        stage_history = [metrics for metrics in self.history if metrics.stage == state.stage]
        best = min(stage_history, key=lambda metrics: metrics.val_loss)
        result = StageResult(
            name=state.stage,
            epochs=len(stage_history) - 1,
            start_val_loss=stage_history[0].val_loss,
            val_loss=best.val_loss,
            val_accuracy=best.val_accuracy,
            seconds=round(profiler.total_seconds, 3),
            trainable_parameters=num_trainable_parameters,
            times=profiler.summary(),
        )
        self.results.append(result)
        return result

    def _write_pending_best(self) -> None:
        if self._pending_best is not None:
            self._best, paths = self._pending_best
            write_checkpoint(self._best, *paths)
            self._pending_best = None

    def _progress_to_dict(self) -> dict[str, Any]:
        return {
            "finished": False,
            "stages": list(self.stage_names),
            "history": [metrics.to_dict() for metrics in self.history],
            "results": [result.to_dict() for result in self.results],
            "skipped": sorted(self.skipped),
            "start_times": list(self.start_times),
            "fingerprint": self.fingerprint,
        }

    def _write_last(
        self, model: nn.Module, stage: str, epoch: int, metrics: Mapping[str, float], progress: Mapping[str, Any]
    ) -> None:
        checkpoint = dataclasses.replace(
            self.checkpoint_template,
            kind="last",
            stage=stage,
            epoch=epoch,
            metrics=metrics,
            state=model.state_dict(),
            progress=progress,
        )
        write_checkpoint(checkpoint, self.run_dir.last_checkpoint)

    def _create_best_checkpoint(self, metrics: EpochMetrics, weights: Mapping[str, Tensor]) -> Checkpoint:
        return dataclasses.replace(
            self.checkpoint_template,
            kind="best",
            stage=metrics.stage,
            epoch=metrics.epoch,
            metrics=_val_metrics(metrics),
            state=weights,
        )


def _copy_weights(model: nn.Module, frozen_names: Collection[str]) -> dict[str, Tensor]:
    """Return a copy of the weights; frozen tensors, which do not change, are shared."""
    tensors = model.state_dict().items()
    return {name: tensor.detach() if name in frozen_names else tensor.detach().clone() for name, tensor in tensors}


def results_from_dict(progress: Mapping[str, Any]) -> list[StageResult]:
    """Return the results of the finished stages from the progress in last.pt."""
    return [StageResult(**{**result, "times": StageTimes(**result["times"])}) for result in progress["results"]]


def _val_metrics(metrics: EpochMetrics) -> dict[str, float]:
    return {"val_loss": metrics.val_loss, "val_accuracy": metrics.val_accuracy}
