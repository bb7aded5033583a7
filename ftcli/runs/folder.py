"""The folder of a run: its name, its files, and finding a checkpoint in one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.errors import CheckpointError, RecipeError
from ftcli.results import EpochRow
from ftcli.runs.curves import draw_curves
from ftcli.storage import is_held, make_folder, replace_file

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
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
    def manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    def stage(self, name: str) -> Path:
        """The best checkpoint of a stage."""
        return self.path / "stages" / f"{name}.pt"

    def holds_run(self) -> bool:
        """Whether a run has come to something here. One that was killed before its first measurement has not: nothing
        could go on from it, and its place is free again."""
        return any(file.exists() for file in (self.metrics, self.last, self.best_loss))

    def is_taken(self) -> bool:
        """Whether a run is here, or one is beginning at this moment. Not to be asked by the one that is beginning."""
        return self.holds_run() or is_held(self.path)

    def prepare(self, recipe: str, manifest: Mapping[str, Any]) -> None:
        """Write what is known before training begins."""
        make_folder(self.path / "stages")
        replace_file(self.recipe, recipe)
        self.write_manifest(manifest)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        replace_file(self.manifest, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")

    def write_metrics(self, rows: Iterable[EpochRow]) -> None:
        """Write a line an epoch, all of them anew: what a killed run left is overwritten, never repeated."""
        replace_file(self.metrics, "".join(json.dumps(row.to_dict()) + "\n" for row in rows))

    def write_curves(self, rows: Iterable[EpochRow]) -> None:
        """Draw losses and accuracies over the epochs into curves.png."""
        replace_file(self.path / "curves.png", draw_curves(tuple(rows)))

    def check_whole(self, stages: Iterable[str]) -> None:
        """Raise CheckpointError if a run cannot go on for want of its best checkpoints, of these stages and its own."""
        for file in (self.best_loss, *(self.stage(name) for name in stages)):
            if not file.exists():
                raise CheckpointError(
                    f"{file}: is missing, and {self.last} cannot go on without it; put it back, or add --stage to "
                    "begin a new run from these weights"
                )

    def discard_unbegun(self) -> None:
        """Take away what was written if no last.pt came of it, so that the name is free again."""
        if self.last.exists():
            return
        begun = (self.recipe, self.manifest, self.metrics, self.best_loss, self.path / ".lock")
        for file in (*begun, *(self.path / "stages").glob("*.pt")):
            file.unlink(missing_ok=True)
        for folder in (self.path / "stages", self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def choose_folder(out: Path | None, name: str) -> tuple[RunFolder, str | None]:
    """The folder of a new run, not yet made, and a sentence where it is another than runs/<name>.

    Raises RecipeError if `out` holds a run.
    """
    if out is not None:
        if RunFolder(out).holds_run():
            raise RecipeError(
                f"--out: {out} already holds a run; give another folder, or go on with --resume {out}/last.pt"
            )
        return RunFolder(out), None
    first = RunFolder(RUNS / name)
    if not first.is_taken():
        return first, None
    number = 2
    while RunFolder(RUNS / f"{name}-{number}").is_taken():
        number += 1
    chosen = RunFolder(RUNS / f"{name}-{number}")
    return chosen, f"{first.path} already holds a run; this one goes to {chosen.path}"


def find_checkpoint(given: Path) -> tuple[Path, str | None]:
    """The checkpoint that --resume or an argument names, and a sentence where it was looked for.

    A bare file name that is not in the current folder is looked for in runs/*/: one hit is used; several are listed
    and refused. Raises CheckpointError.
    """
    if given.is_file():
        return given, None
    if given.is_dir():
        raise CheckpointError(f"{given}: is a folder; give a checkpoint in it, such as {given / 'best_loss.pt'}")
    if given.name == str(given):
        hits = sorted(hit for hit in RUNS.glob(f"*/{given.name}") if hit.is_file())
        if len(hits) == 1:
            return hits[0], f"{given} is not in this folder; {hits[0]} is used"
        if hits:
            listed = ", ".join(str(hit) for hit in hits)
            raise CheckpointError(f"{given}: is in {len(hits)} runs: {listed}; give the path of one")
        raise CheckpointError(
            f"{given}: there is no such file, here or in {RUNS}/*/; train first, or give the path of a checkpoint"
        )
    raise CheckpointError(
        f"{given}: there is no such file; give the path of a checkpoint, such as runs/NAME/best_loss.pt"
    )
