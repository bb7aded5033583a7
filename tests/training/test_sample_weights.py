"""What an image weighs is what it counts in the training loss, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli

DETERMINISTIC_SETTINGS = (
    "head.dropout=0",
    "data.augment=none",
    "stages.head.batch_norm=frozen",
    "stages.head.optimizer.lr=1e-30",
    "stages.head.epochs=1",
)


def write_manifest(folder: Path, photos: Path, name: str, weight_of: Callable[[Path], float] | None = None) -> str:
    """A manifest of the photographs: 16 to train and 4 to validate of each class, and those of the test."""
    lines = ["path,label,split" + (",weight" if weight_of else "")]
    for path in sorted(photos.rglob("*.jpg")):
        split = "test" if path.parts[-3] == "test" else "val" if int(path.stem) < 4 else "train"
        lines.append(f"{path},{path.parent.name},{split}" + (f",{weight_of(path)}" if weight_of else ""))
    (folder / name).write_text("\n".join(lines))
    return f"--set=data.root={name}"


def train(ftcli: Ftcli, root: str, *settings: str) -> tuple[Path, list[dict[str, Any]]]:
    outcome = ftcli("train", "r.yaml", "--stage", "head", root, *(f"--set={one}" for one in settings), "--json")
    assert outcome.code == 0, outcome.err
    run = Path(outcome.json["run"])
    return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weigh_unevenly(path: Path) -> float:
    return int(path.stem) % 5 / 2


def test_equal_sample_weights_change_nothing(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    plain, plain_rows = train(ftcli, write_manifest(workplace, photo_folder, "plain.csv"))
    equal, equal_rows = train(ftcli, write_manifest(workplace, photo_folder, "equal.csv", lambda _: 0.7))
    uneven, uneven_rows = train(ftcli, write_manifest(workplace, photo_folder, "uneven.csv", weigh_unevenly))
    states = [read_checkpoint(run / "last.pt").state for run in (plain, equal, uneven)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())
    assert [row["train_loss"] for row in plain_rows] == [row["train_loss"] for row in equal_rows]
    assert plain_rows[0]["val_loss"] == uneven_rows[0]["val_loss"]
    assert plain_rows[1]["train_loss"] != uneven_rows[1]["train_loss"]


def test_train_loss_ignores_zero_weight_images(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    root = write_manifest(workplace, photo_folder, "one.csv", lambda path: 3.0 * (path.parent.name == "flower"))
    run, rows = train(ftcli, root, *DETERMINISTIC_SETTINGS)
    lines = (workplace / "one.csv").read_text().splitlines()
    (workplace / "flowers.csv").write_text("\n".join([lines[0], *(line for line in lines if "/flower/" in line)]))
    outcome = ftcli("evaluate", run / "best_loss.pt", "--data", "flowers.csv", "--split", "train", "--json").json
    assert outcome["images"] == 16
    assert rows[1]["train_loss"] == pytest.approx(outcome["loss"], rel=1e-5)
    smooth_rows = train(ftcli, root, *DETERMINISTIC_SETTINGS, "stages.head.label_smoothing=0.5")[1]
    assert smooth_rows[1]["train_loss"] != pytest.approx(outcome["loss"], rel=1e-3)


@pytest.mark.slow
def test_resume_keeps_sample_weights(
    workplace: Path, training: Callable[..., int], kill_by: Callable[..., Any], photo_folder: Path
) -> None:
    root = write_manifest(workplace, photo_folder, "uneven.csv", weigh_unevenly)
    arguments = ("train", "r.yaml", "--stage", "head", root)
    assert training(workplace, *arguments, "--out", "whole") == 0
    assert (
        training(workplace, *arguments, "--out", "run", kill=kill_by("SIGTERM", "update_progress", "head 2/2", 2))
        == 143
    )
    assert training(workplace, "train", "--resume", "run/last.pt", "--set", "data.num_workers=2") == 0
    assert "images have changed" not in (workplace / "log.txt").read_text()
    one, other = (read_checkpoint(workplace / folder / "last.pt") for folder in ("whole", "run"))
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert one.progress is not None
    assert other.progress is not None
    losses = [
        [row["train_loss"] for row in checkpoint.progress["rows"]] for checkpoint in (one, other) if checkpoint.progress
    ]
    assert losses[0] == losses[1]
