"""What a run has come to, written down so that it can be read, used and gone on with."""

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
"""Checkpoints wait until so many times the seconds have passed that writing them takes: a stage whose epochs are short
spends 5 % of its time on them, and a kill costs it no more than that pause."""


@dataclass
class StageState:
    """How far a stage is. `epoch` is the last one measured (-1 before the first measurement), `step` counts those
    taken of the next; the sums are over these steps' images. `frozen` are the digests that the proof compares with,
    `times` what a ledger keeps."""

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
        """The epoch was measured; count the next one from nothing."""
        self.step, self.loss_sum, self.correct, self.num_samples = 0, 0.0, 0, 0
        self.training_seconds = 0.0


@dataclass
class CheckpointManager:
    """The rows and stage results of a run, and its files.

    `world` is what every checkpoint of the run carries besides weights and figures; `begun` are the times at which it
    was begun and gone on with. The best checkpoints are always written before `last.pt`: a kill between the two repeats
    an epoch and ends in the same bits, and loses nothing. Until they are written, copies of the best weights wait.
    """

    folder: RunDir
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

    def reset_save_timer(self) -> None:
        """Training begins now: what was computed before is in the cache, and no checkpoint need hold it."""
        self._last_save_time = time.monotonic()

    def on_epoch_end(
        self, metrics: EpochMetrics, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState
    ) -> bool:
        """Note a measured epoch, and save it if the last time was long enough ago; returns whether it is the run's
        lowest validation loss so far."""
        stage_losses = [previous.val_loss for previous in self.history if previous.stage == metrics.stage]
        is_stage_best = metrics.val_loss < min(stage_losses, default=float("inf"))
        is_run_best = metrics.val_loss < min((previous.val_loss for previous in self.history), default=float("inf"))
        self.history.append(metrics)
        if is_stage_best:
            paths = (self.folder.stage_checkpoint(metrics.stage), *([self.folder.best_loss] if is_run_best else []))
            self._pending_best = (
                self._create_best_checkpoint(metrics, _copy_weights(model, state.frozen_digests)),
                paths,
            )
        if time.monotonic() - self._last_save_time >= SAVE_INTERVAL_FACTOR * self._last_save_seconds:
            self.save(model, optimizer, state)
        return is_run_best

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """Write the best checkpoints that wait, and last.pt: from it the run goes on exactly where it is."""
        start_time = time.monotonic()
        self._write_pending_best()
        progress = {**self._progress_to_dict(), "state": dataclasses.asdict(state), "optimizer": optimizer.state_dict()}
        is_validated = state.epoch >= 0 and state.step == 0  # the last row is then of these very weights
        metrics = _val_metrics(self.history[-1]) if is_validated else {}
        self._write_last(model, state.stage, max(state.epoch, 0), metrics, progress)
        self.folder.write_metrics(self.history)
        self._saved_position = (state.stage, state.epoch, state.step)
        self._last_save_time = time.monotonic()
        self._last_save_seconds = self._last_save_time - start_time

    def save_if_stale(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """The same, unless it was done since the last epoch ended."""
        if self._saved_position != (state.stage, state.epoch, state.step):
            self.save(model, optimizer, state)

    def save_final(self, model: nn.Module, test: TestResult | None) -> None:
        """Write the last.pt of a run that has nothing left to do, and whose best weights are in the model."""
        last, best = self.history[-1], min(self.history, key=lambda metrics: metrics.val_loss)
        progress = {**self._progress_to_dict(), "finished": True, "test": None if test is None else test.to_dict()}
        self._write_last(model, last.stage, last.epoch, _val_metrics(best), progress)
        self.folder.write_metrics(self.history)

    def restore_best(self, stage: str, model: nn.Module) -> None:
        """Put the best weights of a stage into the network; where they wait they are written too."""
        self._write_pending_best()
        best = self._best if self._best is not None and self._best.stage == stage else None
        copy_state_dict(model, (best or read_checkpoint(self.folder.stage_checkpoint(stage))).state)
        self._best = None

    def summarize_stage(self, state: StageState, num_trainable_parameters: int, profiler: StageProfiler) -> StageResult:
        """Sum up a stage that has ended."""
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
            "rows": [metrics.to_dict() for metrics in self.history],
            "results": [result.to_dict() for result in self.results],
            "skipped": sorted(self.skipped),
            "begun": list(self.start_times),
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
        write_checkpoint(checkpoint, self.folder.last)

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
    """The weights as they are now. Those that the stage leaves alone are no copies."""
    tensors = model.state_dict().items()
    return {name: tensor.detach() if name in frozen_names else tensor.detach().clone() for name, tensor in tensors}


def history_from_dict(progress: Mapping[str, Any]) -> list[EpochMetrics]:
    """The measured epochs that a last.pt holds."""
    return [EpochMetrics(**metrics) for metrics in progress["rows"]]


def results_from_dict(progress: Mapping[str, Any]) -> list[StageResult]:
    """The ended stages that a last.pt holds."""
    return [StageResult(**{**result, "times": StageTimes(**result["times"])}) for result in progress["results"]]


def _val_metrics(metrics: EpochMetrics) -> dict[str, float]:
    return {"val_loss": metrics.val_loss, "val_accuracy": metrics.val_accuracy}
