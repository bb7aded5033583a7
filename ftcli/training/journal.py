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

from ftcli.models.states import put_tensors
from ftcli.results import EpochRow, StageResult, StageTimes, TestResult
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ftcli.runs.folder import RunFolder
from ftcli.training.ledger import Ledger

PATIENCE = 20.0
"""Checkpoints wait until so many times the seconds have passed that writing them takes: a stage whose epochs are short
spends 5 % of its time on them, and a kill costs it no more than that pause."""


@dataclass
class StageState:
    """How far a stage is. `epoch` is the last one measured (-1 before the first measurement), `step` counts those
    taken of the next; the sums are over these steps' images. `frozen` are the digests that the proof compares with,
    `times` what a ledger keeps."""

    stage: str
    frozen: dict[str, str]
    epoch: int = -1
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0
    training_seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def begin_epoch(self) -> None:
        """The epoch was measured; count the next one from nothing."""
        self.step, self.loss_sum, self.right, self.seen = 0, 0.0, 0, 0
        self.training_seconds = 0.0


@dataclass
class Journal:
    """The rows and stage results of a run, and its files.

    `world` is what every checkpoint of the run carries besides weights and figures; `begun` are the times at which it
    was begun and gone on with. The best checkpoints are always written before `last.pt`: a kill between the two repeats
    an epoch and ends in the same bits, and loses nothing. Until they are written, copies of the best weights wait.
    """

    folder: RunFolder
    world: Checkpoint
    stages: tuple[str, ...]
    rows: list[EpochRow] = field(default_factory=list)
    results: list[StageResult] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    fingerprint: str = ""
    _waiting: tuple[Checkpoint, tuple[Path, ...]] | None = None
    _best: Checkpoint | None = None
    _place: tuple[str, int, int] | None = None
    _written: float = field(default_factory=time.monotonic)
    _cost: float = 0.1

    def begin(self) -> None:
        """Training begins now: what was computed before is in the cache, and no checkpoint need hold it."""
        self._written = time.monotonic()

    def record(self, row: EpochRow, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> bool:
        """Note a measured epoch, and save it if the last time was long enough ago; returns whether it is the run's
        lowest validation loss so far."""
        in_stage = [past.val_loss for past in self.rows if past.stage == row.stage]
        best_of_stage = row.val_loss < min(in_stage, default=float("inf"))
        best_of_run = row.val_loss < min((past.val_loss for past in self.rows), default=float("inf"))
        self.rows.append(row)
        if best_of_stage:
            paths = (self.folder.stage(row.stage), *([self.folder.best_loss] if best_of_run else []))
            self._waiting = (self._checkpoint(row, _copy_weights(model, state.frozen)), paths)
        if time.monotonic() - self._written >= PATIENCE * self._cost:
            self.save(model, optimizer, state)
        return best_of_run

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """Write the best checkpoints that wait, and last.pt: from it the run goes on exactly where it is."""
        began = time.monotonic()
        self._write_waiting()
        progress = {**self._progress(), "state": dataclasses.asdict(state), "optimizer": optimizer.state_dict()}
        measured = state.epoch >= 0 and state.step == 0  # the last row is then of these very weights
        metrics = _figures(self.rows[-1]) if measured else {}
        self._write_last(model, state.stage, max(state.epoch, 0), metrics, progress)
        self.folder.write_metrics(self.rows)
        self._place = (state.stage, state.epoch, state.step)
        self._written = time.monotonic()
        self._cost = self._written - began

    def catch_up(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """The same, unless it was done since the last epoch ended."""
        if self._place != (state.stage, state.epoch, state.step):
            self.save(model, optimizer, state)

    def save_finished(self, model: nn.Module, test: TestResult | None) -> None:
        """Write the last.pt of a run that has nothing left to do, and whose best weights are in the model."""
        last, best = self.rows[-1], min(self.rows, key=lambda row: row.val_loss)
        progress = {**self._progress(), "finished": True, "test": None if test is None else test.to_dict()}
        self._write_last(model, last.stage, last.epoch, _figures(best), progress)
        self.folder.write_metrics(self.rows)

    def restore_best(self, stage: str, model: nn.Module) -> None:
        """Put the best weights of a stage into the network; where they wait they are written too."""
        self._write_waiting()
        kept = self._best if self._best is not None and self._best.stage == stage else None
        put_tensors(model, (kept or read_checkpoint(self.folder.stage(stage))).state)
        self._best = None

    def close_stage(self, state: StageState, trainable: int, ledger: Ledger) -> StageResult:
        """Sum up a stage that has ended."""
        rows = [row for row in self.rows if row.stage == state.stage]
        best = min(rows, key=lambda row: row.val_loss)
        result = StageResult(
            name=state.stage,
            epochs=len(rows) - 1,
            start_val_loss=rows[0].val_loss,
            val_loss=best.val_loss,
            val_accuracy=best.val_accuracy,
            seconds=round(ledger.seconds, 3),
            trainable_parameters=trainable,
            times=ledger.sum_up(),
        )
        self.results.append(result)
        return result

    def _write_waiting(self) -> None:
        if self._waiting is not None:
            self._best, paths = self._waiting
            write_checkpoint(self._best, *paths)
            self._waiting = None

    def _progress(self) -> dict[str, Any]:
        return {
            "finished": False,
            "stages": list(self.stages),
            "rows": [row.to_dict() for row in self.rows],
            "results": [result.to_dict() for result in self.results],
            "skipped": sorted(self.skipped),
            "begun": list(self.begun),
            "fingerprint": self.fingerprint,
        }

    def _write_last(
        self, model: nn.Module, stage: str, epoch: int, metrics: Mapping[str, float], progress: Mapping[str, Any]
    ) -> None:
        checkpoint = dataclasses.replace(
            self.world,
            kind="last",
            stage=stage,
            epoch=epoch,
            metrics=metrics,
            state=model.state_dict(),
            progress=progress,
        )
        write_checkpoint(checkpoint, self.folder.last)

    def _checkpoint(self, row: EpochRow, weights: Mapping[str, Tensor]) -> Checkpoint:
        return dataclasses.replace(
            self.world,
            kind="best",
            stage=row.stage,
            epoch=row.epoch,
            metrics=_figures(row),
            state=weights,
        )


def _copy_weights(model: nn.Module, frozen: Collection[str]) -> dict[str, Tensor]:
    """The weights as they are now. Those that the stage leaves alone are no copies."""
    tensors = model.state_dict().items()
    return {name: tensor.detach() if name in frozen else tensor.detach().clone() for name, tensor in tensors}


def revive_rows(progress: Mapping[str, Any]) -> list[EpochRow]:
    """The measured epochs that a last.pt holds."""
    return [EpochRow(**row) for row in progress["rows"]]


def revive_results(progress: Mapping[str, Any]) -> list[StageResult]:
    """The ended stages that a last.pt holds."""
    return [StageResult(**{**result, "times": StageTimes(**result["times"])}) for result in progress["results"]]


def _figures(row: EpochRow) -> dict[str, float]:
    return {"val_loss": row.val_loss, "val_accuracy": row.val_accuracy}
