"""Tests that sample weights scale the training loss and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from tests.conftest import Ftcli

DETERMINISTIC_SETTINGS = (
    "head.dropout=0",
    "data.augment=none",
    "stages.head.batch_norm=frozen",
    "stages.head.optimizer.lr=1e-30",
    "stages.head.epochs=1",
)


def write_manifest(folder: Path, photos: Path, name: str, weight_of: Callable[[Path], float] | None = None) -> str:
    """Write a manifest of the photos: 16 for train and 4 for val of each class, and those for test."""
    lines = ["path,label,split" + (",weight" if weight_of else "")]
    for path in sorted(photos.rglob("*.jpg")):
        split = "test" if path.parts[-3] == "test" else "val" if int(path.stem) < 4 else "train"
        lines.append(f"{path},{path.parent.name},{split}" + (f",{weight_of(path)}" if weight_of else ""))
    (folder / name).write_text("\n".join(lines))
    return f"--set=data.root={name}"


def train(ftcli: Ftcli, root: str, *settings: str) -> tuple[Path, list[dict[str, Any]]]:
    outcome = ftcli("train", "r.yaml", "--stage", "head", root, *(f"--set={setting}" for setting in settings), "--json")
    assert outcome.code == 0, outcome.err
    run = Path(outcome.json["run"])
    return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def list_train_losses(checkpoint: Checkpoint) -> list[float | None]:
    assert checkpoint.progress is not None
    return [metrics["train_loss"] for metrics in checkpoint.progress["history"]]


def weigh_unevenly(path: Path) -> float:
    return int(path.stem) % 5 / 2


def test_equal_sample_weights_change_nothing(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    plain, plain_history = train(ftcli, write_manifest(work_dir, photo_folder, "plain.csv"))
    equal, equal_history = train(ftcli, write_manifest(work_dir, photo_folder, "equal.csv", lambda _: 0.7))
    uneven, uneven_history = train(ftcli, write_manifest(work_dir, photo_folder, "uneven.csv", weigh_unevenly))
    states = [read_checkpoint(run / "last.pt").state for run in (plain, equal, uneven)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())
    assert [m["train_loss"] for m in plain_history] == [m["train_loss"] for m in equal_history]
    assert plain_history[0]["val_loss"] == uneven_history[0]["val_loss"]
    assert plain_history[1]["train_loss"] != uneven_history[1]["train_loss"]


def test_train_loss_ignores_zero_weight_images(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    root = write_manifest(work_dir, photo_folder, "one.csv", lambda path: 3.0 * (path.parent.name == "flower"))
    run, history = train(ftcli, root, *DETERMINISTIC_SETTINGS)
    lines = (work_dir / "one.csv").read_text().splitlines()
    (work_dir / "flowers.csv").write_text("\n".join([lines[0], *(line for line in lines if "/flower/" in line)]))
    outcome = ftcli("evaluate", run / "best_loss.pt", "--data", "flowers.csv", "--split", "train", "--json").json
    assert outcome["images"] == 16
    assert history[1]["train_loss"] == pytest.approx(outcome["loss"], rel=1e-5)
    smooth_history = train(ftcli, root, *DETERMINISTIC_SETTINGS, "stages.head.label_smoothing=0.5")[1]
    assert smooth_history[1]["train_loss"] != pytest.approx(outcome["loss"], rel=1e-3)


@pytest.mark.slow
def test_resume_keeps_sample_weights(
    work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any], photo_folder: Path
) -> None:
    root = write_manifest(work_dir, photo_folder, "uneven.csv", weigh_unevenly)
    arguments = ("train", "r.yaml", "--stage", "head", root)
    assert training(work_dir, *arguments, "--out", "uninterrupted") == 0
    assert (
        training(work_dir, *arguments, "--out", "run", kill=kill_by("SIGTERM", "update_progress", "head 2/2", 2)) == 143
    )
    assert training(work_dir, "train", "--resume", "run/last.pt", "--set", "data.num_workers=2") == 0
    assert "images changed" not in (work_dir / "log.txt").read_text()
    uninterrupted, resumed = (read_checkpoint(work_dir / folder / "last.pt") for folder in ("uninterrupted", "run"))
    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in uninterrupted.state.items())
    assert list_train_losses(uninterrupted) == list_train_losses(resumed)
