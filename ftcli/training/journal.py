"""What a run has come to, written down so that it can be read, used and gone on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ftcli.results import EpochRow, StageResult, TestResult
from ftcli.runs.checkpoint import Checkpoint, write_checkpoint
from ftcli.runs.folder import RunFolder


@dataclass
class StageState:
    """How far a stage is. `epoch` is the last one measured (-1 before the first measurement), `step` counts those
    taken of the next; the sums are over these steps' images. `frozen` are the digests that the proof compares with."""

    stage: str
    frozen: dict[str, str]
    epoch: int = -1
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0
    training_seconds: float = 0.0

    def begin_epoch(self) -> None:
        """The epoch was measured; count the next one from nothing."""
        self.step, self.loss_sum, self.right, self.seen = 0, 0.0, 0, 0
        self.training_seconds = 0.0


@dataclass
class Journal:
    """The rows and stage results of a run, and its files.

    `world` is what every checkpoint of the run carries besides weights and figures; `begun` are the times at which it
    was begun and gone on with. The best checkpoints are always
    written before `last.pt`: a kill between the two repeats an epoch and ends in the same bits, and loses nothing.
    """

    folder: RunFolder
    world: Checkpoint
    stages: tuple[str, ...]
    rows: list[EpochRow] = field(default_factory=list)
    results: list[StageResult] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def record(self, row: EpochRow, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> bool:
        """Note a measured epoch and save it; returns whether it is the run's lowest validation loss so far."""
        in_stage = [past.val_loss for past in self.rows if past.stage == row.stage]
        best_of_stage = row.val_loss < min(in_stage, default=float("inf"))
        best_of_run = row.val_loss < min((past.val_loss for past in self.rows), default=float("inf"))
        self.rows.append(row)
        if best_of_stage:
            write_checkpoint(self.folder.stage(row.stage), self._checkpoint("stage", row, model))
        if best_of_run:
            write_checkpoint(self.folder.best_loss, self._checkpoint("best", row, model))
        self.save_last(model, optimizer, state)
        self.folder.write_metrics(self.rows)
        return best_of_run

    def save_last(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StageState) -> None:
        """Write last.pt: from it the run goes on exactly where it is."""
        progress = {**self._progress(), "state": dataclasses.asdict(state), "optimizer": optimizer.state_dict()}
        measured = state.epoch >= 0 and state.step == 0  # the last row is then of these very weights
        metrics = _figures(self.rows[-1]) if measured else {}
        self._write_last(model, state.stage, max(state.epoch, 0), metrics, progress)

    def save_finished(self, model: nn.Module, test: TestResult | None) -> None:
        """Write the last.pt of a run that has nothing left to do, and whose best weights are in the model."""
        last, best = self.rows[-1], min(self.rows, key=lambda row: row.val_loss)
        progress = {**self._progress(), "finished": True, "test": None if test is None else test.to_dict()}
        self._write_last(model, last.stage, last.epoch, _figures(best), progress)

    def close_stage(self, state: StageState, trainable: int) -> StageResult:
        """Sum up a stage that has ended."""
        rows = [row for row in self.rows if row.stage == state.stage]
        best = min(rows, key=lambda row: row.val_loss)
        result = StageResult(
            name=state.stage,
            epochs=len(rows) - 1,
            start_val_loss=rows[0].val_loss,
            val_loss=best.val_loss,
            val_accuracy=best.val_accuracy,
            seconds=round(sum(row.seconds for row in rows), 3),
            trainable_parameters=trainable,
        )
        self.results.append(result)
        self.folder.write_curves(self.rows)
        return result

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
        write_checkpoint(
            self.folder.last,
            dataclasses.replace(
                self.world,
                kind="last",
                stage=stage,
                epoch=epoch,
                metrics=metrics,
                state=model.state_dict(),
                progress=progress,
            ),
        )

    def _checkpoint(self, kind: Literal["best", "stage"], row: EpochRow, model: nn.Module) -> Checkpoint:
        return dataclasses.replace(
            self.world,
            kind=kind,
            stage=row.stage,
            epoch=row.epoch,
            metrics=_figures(row),
            state=model.state_dict(),
        )


def revive_rows(progress: Mapping[str, Any]) -> list[EpochRow]:
    """The measured epochs that a last.pt holds."""
    return [EpochRow(**row) for row in progress["rows"]]


def revive_results(progress: Mapping[str, Any]) -> list[StageResult]:
    """The ended stages that a last.pt holds."""
    return [StageResult(**result) for result in progress["results"]]


def _figures(row: EpochRow) -> dict[str, float]:
    return {"val_loss": row.val_loss, "val_accuracy": row.val_accuracy}
