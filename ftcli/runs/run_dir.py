"""The folder of a run: its name, its files, and finding a checkpoint in one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.errors import CheckpointError, RecipeError
from ftcli.files import atomic_write, is_locked, make_dir
from ftcli.results import EpochMetrics
from ftcli.runs.curves import render_curves

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class RunDir:
    """Where the files of one run are."""

    path: Path

    @property
    def best_loss(self) -> Path:
        return self.path / "best_loss.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metadata(self) -> Path:
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    def stage_checkpoint(self, name: str) -> Path:
        """The best checkpoint of a stage."""
        return self.path / "stages" / f"{name}.pt"

    def has_run(self) -> bool:
        """Whether a run has come to something here. One that was killed before its first measurement has not: nothing
        could go on from it, and its place is free again."""
        return any(file.exists() for file in (self.metrics, self.last, self.best_loss))

    def is_taken(self) -> bool:
        """Whether a run is here, or one is beginning at this moment. Not to be asked by the one that is beginning."""
        return self.has_run() or is_locked(self.path)

    def write_initial_files(self, recipe: str, metadata: Mapping[str, Any]) -> None:
        """Write what is known before training begins."""
        make_dir(self.path / "stages")
        atomic_write(self.recipe, recipe)
        self.write_metadata(metadata)

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        atomic_write(self.metadata, json.dumps(metadata, ensure_ascii=False, indent=1) + "\n")

    def write_metrics(self, history: Iterable[EpochMetrics]) -> None:
        """Write a line an epoch, all of them anew: what a killed run left is overwritten, never repeated."""
        atomic_write(self.metrics, "".join(json.dumps(row.to_dict()) + "\n" for row in history))

    def write_curves(self, history: Iterable[EpochMetrics]) -> None:
        """Draw losses and accuracies over the epochs into curves.png."""
        atomic_write(self.path / "curves.png", render_curves(tuple(history)))

    def check_resumable(self, stages: Iterable[str]) -> None:
        """Raise CheckpointError if a run cannot go on for want of its best checkpoints, of these stages and its own."""
        for file in (self.best_loss, *(self.stage_checkpoint(name) for name in stages)):
            if not file.exists():
                raise CheckpointError(
                    f"{file}: is missing, and {self.last} cannot go on without it; put it back, or add --stage to "
                    "begin a new run from these weights"
                )

    def remove_if_empty(self) -> None:
        """Take away what was written if no last.pt came of it, so that the name is free again."""
        if self.last.exists():
            return
        files = (self.recipe, self.metadata, self.metrics, self.best_loss, self.path / ".lock")
        for file in (*files, *(self.path / "stages").glob("*.pt")):
            file.unlink(missing_ok=True)
        for folder in (self.path / "stages", self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def choose_run_dir(out: Path | None, name: str) -> tuple[RunDir, str | None]:
    """The folder of a new run, not yet made, and a sentence where it is another than runs/<name>.

    Raises RecipeError if `out` holds a run.
    """
    if out is not None:
        if RunDir(out).has_run():
            raise RecipeError(
                f"--out: {out} already holds a run; give another folder, or go on with --resume {out}/last.pt"
            )
        return RunDir(out), None
    default = RunDir(RUNS_DIR / name)
    if not default.is_taken():
        return default, None
    number = 2
    while RunDir(RUNS_DIR / f"{name}-{number}").is_taken():
        number += 1
    chosen = RunDir(RUNS_DIR / f"{name}-{number}")
    return chosen, f"{default.path} already holds a run; this one goes to {chosen.path}"


def find_checkpoint(path: Path) -> tuple[Path, str | None]:
    """The checkpoint that --resume or an argument names, and a sentence where it was looked for.

    A bare file name that is not in the current folder is looked for in runs/*/: one hit is used; several are listed
    and refused. Raises CheckpointError.
    """
    if path.is_file():
        return path, None
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give a checkpoint in it, such as {path / 'best_loss.pt'}")
    if path.name == str(path):
        matches = sorted(match for match in RUNS_DIR.glob(f"*/{path.name}") if match.is_file())
        if len(matches) == 1:
            return matches[0], f"{path} is not in this folder; {matches[0]} is used"
        if matches:
            listed = ", ".join(str(match) for match in matches)
            raise CheckpointError(f"{path}: is in {len(matches)} runs: {listed}; give the path of one")
        raise CheckpointError(
            f"{path}: there is no such file, here or in {RUNS_DIR}/*/; train first, or give the path of a checkpoint"
        )
    raise CheckpointError(
        f"{path}: there is no such file; give the path of a checkpoint, such as runs/NAME/best_loss.pt"
    )
