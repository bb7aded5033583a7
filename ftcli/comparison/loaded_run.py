"""The runs of a comparison, as their folders tell of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.data.index import find_base_folder
from ftcli.errors import CheckpointError, RecipeError, suggest
from ftcli.results import EpochMetrics, Reporter
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.history import is_stage_checkpoint, read_history, read_run_metadata, run_of_checkpoint
from ftcli.runs.run_dir import RUNS_DIR, RunDir, find_checkpoint


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint and the run that it is of. `checkpoint` has no weights; `rows` are the epochs up to the end of its
    stage where it is a stage's own, else all. A checkpoint that lies in no run's folder has no rows and no manifest,
    and `run` is the folder that it is in."""

    name: str
    run_dir: Path
    checkpoint_path: Path
    checkpoint: Checkpoint
    history: tuple[EpochMetrics, ...]
    metadata: Mapping[str, Any] | None

    @property
    def val_metrics(self) -> tuple[float | None, float | None]:
        """The validation loss and accuracy of the checkpoint's weights; None where they were not measured."""
        metrics = self.checkpoint.metrics
        return metrics.get("val_loss"), metrics.get("val_accuracy")

    def list_image_paths(self, split: str) -> set[str]:
        """The real, absolute paths of the images that the run had in a split."""
        base = find_base_folder(self.checkpoint.recipe["data"]["root"]).absolute()
        return {os.path.realpath(base / path) for path in self.checkpoint.splits.get(split, ())}


def load_runs(paths: Sequence[Path], reporter: Reporter) -> tuple[LoadedRun, ...]:
    """Read the runs that arguments name: a run's folder stands for its best checkpoint.

    Raises RecipeError for fewer than two and for the same twice, and CheckpointError with a fault of every one that
    cannot be used.
    """
    if len(paths) < 2:
        raise RecipeError(
            f"compare: only {paths[0]} is given; give two runs or more, as in `ftcli compare runs/a runs/b`"
        )
    runs: list[LoadedRun] = []
    errors: list[str] = []
    for path in paths:
        try:
            runs.append(_load_run(path, reporter))
        except CheckpointError as error:
            errors += error.messages
    if errors:
        raise CheckpointError(*errors)
    _check_distinct(paths, runs)
    return tuple(replace(run, name=name) for run, name in zip(runs, _choose_names(runs), strict=True))


def _load_run(argument: Path, reporter: Reporter) -> LoadedRun:
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
            raise CheckpointError(f"{argument}: there is no such run; {suggest(str(argument), known_runs)}")
        path, note = find_checkpoint(argument)
        if note:
            reporter.info(note)
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
    if folder.best_loss.is_file():
        return folder.best_loss
    if not folder.has_run() and folder.metadata.is_file():
        raise CheckpointError(
            f"{folder.path}: has not come to its first measurement, so there is nothing to compare; train it first"
        )
    if not folder.has_run():
        raise CheckpointError(
            f"{folder.path}: is no folder of a run; give one that ftcli train made, such as runs/NAME"
        )
    if not folder.metrics.is_file():
        raise CheckpointError(_describe_missing_epoch(folder))
    raise CheckpointError(f"{folder.best_loss}: is missing; put it back, or give another checkpoint of the run")


def _describe_missing_epoch(folder: RunDir) -> str:
    return (
        f"{folder.path}: has not finished its first epoch, so there is nothing to compare; go on with "
        f"`ftcli train --resume {folder.last}`"
    )


def _check_distinct(paths: Sequence[Path], runs: Sequence[LoadedRun]) -> None:
    """Raise RecipeError if two arguments lead to one file."""
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
    """The shortest names that tell all from one another: that of a run's folder, with the file where it is not the best
    checkpoint; else the folder's whole path in its place. A checkpoint that is in no run's folder has its path."""
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
