"""The runs of a comparison, as their folders tell of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.data.listing import find_base
from ftcli.errors import CheckpointError, RecipeError, suggest
from ftcli.results import EpochRow, Reporter
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.folder import RUNS, RunFolder, find_checkpoint
from ftcli.runs.records import find_run, is_of_stage, read_manifest, read_rows


@dataclass(frozen=True)
class Contender:
    """A checkpoint and the run that it is of. `checkpoint` has no weights; `rows` are the epochs up to the end of its
    stage where it is a stage's own, else all. A checkpoint that lies in no run's folder has no rows and no manifest,
    and `run` is the folder that it is in."""

    name: str
    run: Path
    path: Path
    checkpoint: Checkpoint
    rows: tuple[EpochRow, ...]
    manifest: Mapping[str, Any] | None

    @property
    def val_figures(self) -> tuple[float | None, float | None]:
        """The validation loss and accuracy of the checkpoint's weights; None where they were not measured."""
        metrics = self.checkpoint.metrics
        return metrics.get("val_loss"), metrics.get("val_accuracy")

    def list_images(self, split: str) -> set[str]:
        """The real, absolute paths of the images that the run had in a split."""
        base = find_base(self.checkpoint.recipe["data"]["root"]).absolute()
        return {os.path.realpath(base / path) for path in self.checkpoint.held.get(split, ())}


def gather_contenders(given: Sequence[Path], reporter: Reporter) -> tuple[Contender, ...]:
    """Read the runs that arguments name: a run's folder stands for its best checkpoint.

    Raises RecipeError for fewer than two and for the same twice, and CheckpointError with a fault of every one that
    cannot be used.
    """
    if len(given) < 2:
        raise RecipeError(
            f"compare: only {given[0]} is given; give two runs or more, as in `ftcli compare runs/a runs/b`"
        )
    found: list[Contender] = []
    faults: list[str] = []
    for path in given:
        try:
            found.append(_read(path, reporter))
        except CheckpointError as error:
            faults += error.faults
    if faults:
        raise CheckpointError(*faults)
    _check_different(given, found)
    return tuple(replace(each, name=name) for each, name in zip(found, _choose_names(found), strict=True))


def _read(given: Path, reporter: Reporter) -> Contender:
    if given.is_dir():
        folder: RunFolder | None = RunFolder(given)
        path = _find_best(RunFolder(given))
    else:
        if not given.exists() and given.suffix != ".pt":
            known = {
                str(run) for place in (given.parent, RUNS) for run in place.glob("*") if (run / "last.pt").exists()
            }
            raise CheckpointError(f"{given}: there is no such run; {suggest(str(given), known)}")
        path, note = find_checkpoint(given)
        if note:
            reporter.say(note)
        folder = find_run(path)
    checkpoint = replace(read_checkpoint(path), state={})
    if folder is None:
        return Contender("", path.parent, path, checkpoint, (), None)
    rows = read_rows(folder)
    if not any(row.epoch for row in rows):
        raise CheckpointError(_tell_unbegun(folder))
    if is_of_stage(path):
        rows = rows[: max((place for place, row in enumerate(rows, 1) if row.stage == checkpoint.stage), default=None)]
    return Contender("", folder.path, path, checkpoint, rows, read_manifest(folder))


def _find_best(folder: RunFolder) -> Path:
    if folder.best_loss.is_file():
        return folder.best_loss
    if not folder.holds_run() and folder.manifest.is_file():
        raise CheckpointError(
            f"{folder.path}: has not come to its first measurement, so there is nothing to compare; train it first"
        )
    if not folder.holds_run():
        raise CheckpointError(
            f"{folder.path}: is no folder of a run; give one that ftcli train made, such as runs/NAME"
        )
    if not folder.metrics.is_file():
        raise CheckpointError(_tell_unbegun(folder))
    raise CheckpointError(f"{folder.best_loss}: is missing; put it back, or give another checkpoint of the run")


def _tell_unbegun(folder: RunFolder) -> str:
    return (
        f"{folder.path}: has not finished its first epoch, so there is nothing to compare; go on with "
        f"`ftcli train --resume {folder.last}`"
    )


def _check_different(given: Sequence[Path], found: Sequence[Contender]) -> None:
    """Raise RecipeError if two arguments lead to one file."""
    first: dict[str, Path] = {}
    faults = []
    for path, contender in zip(given, found, strict=True):
        real = os.path.realpath(contender.path)
        if real in first:
            faults.append(f"compare: {first[real]} and {path} are the same checkpoint; give each once")
        first.setdefault(real, path)
    if faults:
        raise RecipeError(*faults)


def _choose_names(found: Sequence[Contender]) -> list[str]:
    """The shortest names that tell all from one another: that of a run's folder, with the file where it is not the best
    checkpoint; else the folder's whole path in its place. A checkpoint that is in no run's folder has its path."""
    short, long = [], []
    for contender in found:
        if not contender.rows:
            short.append(str(contender.path))
            long.append(str(contender.path))
            continue
        file = Path(os.path.relpath(contender.path, contender.run))  # either path may be absolute
        inner = "" if file == Path("best_loss.pt") else f"/{file.as_posix()}"
        short.append(f"{Path(os.path.normpath(contender.run.absolute())).name}{inner}")
        long.append(f"{contender.run}{inner}")
    return short if len(set(short)) == len(short) else long
