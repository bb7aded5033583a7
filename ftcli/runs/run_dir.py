"""Run directories: their names, their files, and the search for a checkpoint."""

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
    """The directory of a run and the paths of its files."""

    path: Path

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "best_loss.pt"

    @property
    def last_checkpoint(self) -> Path:
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
        """Return the path of the best checkpoint of a stage."""
        return self.path / "stages" / f"{name}.pt"

    def has_run(self) -> bool:
        """Return whether the directory has a run. One that was killed before its first save does not count: it cannot
        be resumed, and its name is free again."""
        return any(file.exists() for file in (self.metrics, self.last_checkpoint, self.best_checkpoint))

    def is_taken(self) -> bool:
        """Return whether the directory has a run or is locked by one that is starting."""
        return self.has_run() or is_locked(self.path)

    def write_initial_files(self, recipe: str, metadata: Mapping[str, Any]) -> None:
        """Write recipe.yaml and run.json, which are known before training."""
        make_dir(self.path / "stages")
        atomic_write(self.recipe, recipe)
        self.write_metadata(metadata)

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Write run.json."""
        atomic_write(self.metadata, json.dumps(metadata, ensure_ascii=False, indent=1) + "\n")

    def write_metrics(self, history: Iterable[EpochMetrics]) -> None:
        """Write metrics.jsonl, one line per epoch. The whole file is replaced, so that no epoch is repeated."""
        atomic_write(self.metrics, "".join(json.dumps(metrics.to_dict()) + "\n" for metrics in history))

    def write_curves(self, history: Iterable[EpochMetrics]) -> None:
        """Plot losses and accuracies to curves.png."""
        atomic_write(self.path / "curves.png", render_curves(tuple(history)))

    def check_resumable(self, stages: Iterable[str]) -> None:
        """Raise CheckpointError unless the best checkpoints of the run and of these stages exist."""
        for file in (self.best_checkpoint, *(self.stage_checkpoint(name) for name in stages)):
            if not file.exists():
                raise CheckpointError(
                    f"{file}: does not exist, and {self.last_checkpoint} cannot be resumed without it; restore it, or "
                    "add --stage to start a new run from the weights of last.pt"
                )

    def remove_if_empty(self) -> None:
        """Delete the files of a run without a last.pt, so that its name is free again."""
        if self.last_checkpoint.exists():
            return
        files = (self.recipe, self.metadata, self.metrics, self.best_checkpoint, self.path / ".lock")
        for file in (*files, *(self.path / "stages").glob("*.pt")):
            file.unlink(missing_ok=True)
        for folder in (self.path / "stages", self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def choose_run_dir(out: Path | None, name: str) -> tuple[RunDir, str | None]:
    """Return the directory of a new run, which is not created yet, and a note if it is not runs/<name>.

    Raises RecipeError if `out` already has a run.
    """
    if out is not None:
        if RunDir(out).has_run():
            raise RecipeError(
                f"--out: {out} already contains a run; choose another folder, or continue it with --resume "
                f"{out}/last.pt"
            )
        return RunDir(out), None
    default = RunDir(RUNS_DIR / name)
    if not default.is_taken():
        return default, None
    number = 2
    while RunDir(RUNS_DIR / f"{name}-{number}").is_taken():
        number += 1
    chosen = RunDir(RUNS_DIR / f"{name}-{number}")
    return chosen, f"{default.path} already contains a run; writing to {chosen.path}"


def find_checkpoint(path: Path) -> tuple[Path, str | None]:
    """Return the path of a checkpoint, and a note if it was found in runs/*/.

    A bare file name that is not in the current folder is searched there. Raises CheckpointError unless exactly one run
    has it.
    """
    if path.is_file():
        return path, None
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give a checkpoint in it, such as {path / 'best_loss.pt'}")
    if path.name == str(path):
        matches = sorted(match for match in RUNS_DIR.glob(f"*/{path.name}") if match.is_file())
        if len(matches) == 1:
            return matches[0], f"{path} does not exist in this folder; using {matches[0]}"
        if matches:
            paths = ", ".join(str(match) for match in matches)
            raise CheckpointError(f"{path}: exists in {len(matches)} runs: {paths}; give the path of one")
        raise CheckpointError(
            f"{path}: does not exist, here or in {RUNS_DIR}/*/; train first, or give the path of a checkpoint"
        )
    raise CheckpointError(f"{path}: does not exist; give the path of a checkpoint, such as runs/NAME/best_loss.pt")
