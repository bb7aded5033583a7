"""Tests of the trainer: early stopping, and the settings of a stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.recipe.schema import EarlyStopping
from ftcli.training.trainer import should_stop_early
from tests.conftest import Ftcli


@pytest.mark.covers("stages.early_stopping.min_delta")
@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([1.0], False),
        ([1.0, 1.1], False),
        ([1.0, 1.1, 1.2], True),
        ([1.0, 0.95, 0.94], True),
        ([1.0, 0.8, 0.79], False),
        ([1.0, 0.8, 0.79, 0.6], False),
        ([1.0, float("inf"), 0.5], False),
    ],
)
def test_should_stop_early_counts_epochs_without_improvement(losses: list[float], stops: bool) -> None:
    assert should_stop_early(losses, EarlyStopping(patience=2, min_delta=0.1)) is stops
    assert not should_stop_early(losses, None)


@pytest.mark.parametrize(
    "setting",
    [
        "stages.all.label_smoothing=0.2",
        "stages.all.clip_grad_norm=1e-4",
        "stages.all.optimizer.weight_decay=0.9",
        "stages.all.lr_mult={head: 1}",
        "stages.all.schedule=constant",
        "stages.all.batch_norm=frozen",
        "stages.all.freeze=[conv1]",
        "data.augment=none",
        "data.batch_size=7",
        "seed=1",
        "precision=bfloat16",
    ],
)
@pytest.mark.covers(
    "stages.label_smoothing",
    "stages.clip_grad_norm",
    "stages.optimizer.weight_decay",
    "stages.lr_mult",
    "stages.schedule",
    "stages.batch_norm",
    "stages.freeze",
    "data.augment",
    "data.batch_size",
    "seed",
    "precision",
)
def test_train_each_stage_setting_changes_result(work_dir_with_run: Path, ftcli: Ftcli, setting: str) -> None:
    run = ftcli("train", "--resume", "runs/photos/stages/head.pt", "--set", setting, "--json")
    assert run.code == 0, run.err
    losses, unchanged_losses = (
        [
            json.loads(line)["train_loss"]
            for line in (work_dir_with_run / folder / "metrics.jsonl").read_text().splitlines()[-2:]
        ]
        for folder in (run.json["run"], "runs/photos")
    )
    assert losses != unchanged_losses


def test_val_loss_is_plain_cross_entropy(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    settings = ("--set", "stages.all.label_smoothing=0.5", "--set", "stages.all.optimizer.lr=1e-30")
    run = ftcli("train", "--resume", "runs/photos/stages/head.pt", *settings, "--json").json
    (stage,) = run["stages"]
    history = [json.loads(line) for line in (work_dir_with_run / "runs/photos/metrics.jsonl").read_text().splitlines()]
    assert stage["start_val_loss"] == min(metrics["val_loss"] for metrics in history[:3])


@pytest.mark.covers("stages.epochs")
def test_train_runs_requested_epochs(work_dir: Path, ftcli: Ftcli) -> None:
    run = ftcli("train", "r.yaml", "--stage", "head", "--set", "stages.head.epochs=3", "--json").json
    assert run["stages"][0]["epochs"] == 3
    lines = (Path(run["run"]) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
