"""Runs to compare, read from their run directories."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.data.index import find_base_folder
from ftcli.errors import CheckpointError, RecipeError, suggest
from ftcli.results import EpochMetrics
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.history import is_stage_checkpoint, read_history, read_run_metadata, run_of_checkpoint
from ftcli.runs.run_dir import RUNS_DIR, RunDir, find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint without its weights, and the run that it belongs to.

    `history` holds the epochs up to the end of the stage for the checkpoint of a stage, otherwise all epochs. Outside a
    run directory, `history` is empty, `metadata` is None, and `run_dir` is the folder of the checkpoint.
    """

    name: str
    run_dir: Path
    checkpoint_path: Path
    checkpoint: Checkpoint
    history: tuple[EpochMetrics, ...]
    metadata: Mapping[str, Any] | None

    @property
    def val_metrics(self) -> tuple[float | None, float | None]:
        """The validation loss and accuracy of the checkpoint; None if not measured."""
        metrics = self.checkpoint.metrics
        return metrics.get("val_loss"), metrics.get("val_accuracy")

    def list_image_paths(self, split: str) -> set[str]:
        """Return the resolved paths of the images that the run had in a split."""
        base = find_base_folder(self.checkpoint.recipe["data"]["root"]).absolute()
        return {os.path.realpath(base / path) for path in self.checkpoint.splits.get(split, ())}


def load_runs(paths: Sequence[Path]) -> tuple[LoadedRun, ...]:
    """Load runs from run directories, which mean their best checkpoint, or checkpoints.

    Raises RecipeError for fewer than two paths and for duplicates, CheckpointError with the errors of all runs.
    """
    if len(paths) < 2:
        raise RecipeError(f"compare: {paths[0]} is the only run; give two or more, as in `ftcli compare runs/a runs/b`")
    runs: list[LoadedRun] = []
    errors: list[str] = []
    for path in paths:
        try:
            runs.append(_load_run(path))
        except CheckpointError as error:
            errors += error.messages
    if errors:
        raise CheckpointError(*errors)
    _check_distinct(paths, runs)
    return tuple(replace(run, name=name) for run, name in zip(runs, _choose_names(runs), strict=True))


def _load_run(argument: Path) -> LoadedRun:
    if argument.is_dir():
        folder: RunDir | None = RunDir(argument)
        path = _find_best_checkpoint(RunDir(argument))
    else:
        if not argument.exists() and argument.suffix != ".pt":
            known_runs = {
                str(run)
                for parent in (argument.parent, RUNS_DIR)
                for run in parent.glob("*")
                if (run / "last.pt").exists()
            }
            raise CheckpointError(f"{argument}: does not exist; {suggest(str(argument), known_runs)}")
        path, note = find_checkpoint(argument)
        if note:
            logger.info(note)
        folder = run_of_checkpoint(path)
    checkpoint = replace(read_checkpoint(path), state={})
    if folder is None:
        return LoadedRun("", path.parent, path, checkpoint, (), None)
    history = read_history(folder)
    if not any(row.epoch for row in history):
        raise CheckpointError(_describe_missing_epoch(folder))
    if is_stage_checkpoint(path):
        history = history[
            : max((parent for parent, row in enumerate(history, 1) if row.stage == checkpoint.stage), default=None)
        ]
    return LoadedRun("", folder.path, path, checkpoint, history, read_run_metadata(folder))


def _find_best_checkpoint(folder: RunDir) -> Path:
    if folder.best_checkpoint.is_file():
        return folder.best_checkpoint
    if not folder.has_run() and folder.metadata.is_file():
        raise CheckpointError(f"{folder.path}: has no measured epoch to compare; train it first")
    if not folder.has_run():
        raise CheckpointError(
            f"{folder.path}: is not a run directory; give one written by ftcli train, such as runs/NAME"
        )
    if not folder.metrics.is_file():
        raise CheckpointError(_describe_missing_epoch(folder))
    raise CheckpointError(
        f"{folder.best_checkpoint}: does not exist; restore it, or give another checkpoint of the run"
    )


def _describe_missing_epoch(folder: RunDir) -> str:
    return (
        f"{folder.path}: has no finished epoch to compare; continue with: ftcli train --resume {folder.last_checkpoint}"
    )


def _check_distinct(paths: Sequence[Path], runs: Sequence[LoadedRun]) -> None:
    """Raise RecipeError if two arguments are the same checkpoint."""
    first_path: dict[str, Path] = {}
    errors = []
    for path, run in zip(paths, runs, strict=True):
        real_path = os.path.realpath(run.checkpoint_path)
        if real_path in first_path:
            errors.append(f"compare: {first_path[real_path]} and {path} are the same checkpoint; give each once")
        first_path.setdefault(real_path, path)
    if errors:
        raise RecipeError(*errors)


def _choose_names(runs: Sequence[LoadedRun]) -> list[str]:
    """Return unique names: that of the run directory, followed by the file if it is not the best checkpoint.

    The path of the run directory replaces its name if names are not unique, and the path of the checkpoint is the name
    outside a run directory.
    """
    short_names, long_names = [], []
    for run in runs:
        if not run.history:
            short_names.append(str(run.checkpoint_path))
            long_names.append(str(run.checkpoint_path))
            continue
        relative_path = Path(os.path.relpath(run.checkpoint_path, run.run_dir))  # either path may be absolute
        suffix = "" if relative_path == Path("best_loss.pt") else f"/{relative_path.as_posix()}"
        short_names.append(f"{Path(os.path.normpath(run.run_dir.absolute())).name}{suffix}")
        long_names.append(f"{run.run_dir}{suffix}")
    return short_names if len(set(short_names)) == len(short_names) else long_names
