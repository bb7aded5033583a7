"""Tests of `ftcli train`: the run directory, and every way to resume."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli

METRIC_KEYS = {
    "stage",
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "seconds",
    "images_per_second",
}


@pytest.mark.covers("stages.name")
def test_train_writes_run_dir(work_dir: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "r.yaml", "--json")
    assert outcome.code == 0
    run, result = work_dir / "runs/photos", outcome.json
    assert result["run"] == str(run)
    assert result["best_loss"] == str(run / "best_loss.pt")
    assert [stage["name"] for stage in result["stages"]] == ["head", "all"]
    assert set(result["stages"][0]) == {
        "name",
        "epochs",
        "start_val_loss",
        "val_loss",
        "val_accuracy",
        "seconds",
        "trainable_parameters",
        "times",
    }
    assert result["stages"][0]["trainable_parameters"] == 1024 * 16 + 16 + 16 * 2 + 2
    assert result["test"]["images"] == 12
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == [
        ".lock",
        "best_loss.pt",
        "curves.png",
        "last.pt",
        "metrics.jsonl",
        "recipe.yaml",
        "run.json",
        "stages/all.pt",
        "stages/head.pt",
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row) == METRIC_KEYS for row in rows)
    best = min(rows, key=lambda row: row["val_loss"])
    checkpoint = read_checkpoint(run / "best_loss.pt")
    assert checkpoint.metrics["val_loss"] == best["val_loss"]
    assert (checkpoint.stage, checkpoint.epoch) == (best["stage"], best["epoch"])
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["torch"] == torch.__version__
    assert manifest["command"][:2] == ["ftcli", "train"]
    assert {split: len(paths) for split, paths in manifest["data"]["splits"].items()} == {
        "train": 30,
        "val": 10,
        "test": 12,
    }
    assert manifest["ended"] >= manifest["started"]
    assert "Training in runs/photos on " in outcome.err
    assert f"next: ftcli evaluate {run}" not in outcome.out  # --json prints only the document


def test_train_with_saved_recipe_reproduces_weights(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    first = ftcli("train", "--resume", "runs/photos/last.pt", "--json").json
    again = ftcli("train", "runs/photos/recipe.yaml", "--json")
    assert "runs/photos already contains a run; writing to runs/photos-2" in again.err
    assert again.json["test"] == first["test"]
    first_state, second_state = (read_checkpoint(Path(run["best_loss"])).state for run in (first, again.json))
    assert all(torch.equal(tensor, second_state[name]) for name, tensor in first_state.items())


@pytest.mark.covers("seed")
def test_train_seed_changes_weights(work_dir: Path, ftcli: Ftcli) -> None:
    states = []
    for seed in (0, 1):
        result = ftcli("train", "r.yaml", "--stage", "head", "--set", f"seed={seed}", "--json").json
        states.append(read_checkpoint(Path(result["best_loss"])).state)
    assert not torch.equal(states[0]["fc.0.weight"], states[1]["fc.0.weight"])


def test_inspect_then_head_then_all(work_dir: Path, ftcli: Ftcli) -> None:
    assert ftcli("inspect", "resnet152").code == 0
    head = ftcli("train", "r.yaml", "--stage", "head", "--json")
    assert head.json["next_command"] == "ftcli train --stage all --resume runs/photos/best_loss.pt"
    # The folder has only the checkpoint: no recipe, weights or runs.
    alone = work_dir / "alone"
    alone.mkdir()
    shutil.move(head.json["best_loss"], alone / "best_loss.pt")
    shutil.rmtree(work_dir / "runs")
    (work_dir / "r.yaml").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(alone)
        stored = read_checkpoint(Path("best_loss.pt")).metrics["val_loss"]
        outcome = ftcli("train", "--stage", "all", "--resume", "best_loss.pt", "--json")
        assert outcome.code == 0
        (stage,) = outcome.json["stages"]
        assert stage["name"] == "all"
        assert stage["start_val_loss"] == stored


def test_resume_from_stage_checkpoint_trains_next_stage(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    full_run = ftcli("train", "--resume", "runs/photos/last.pt", "--json").json
    resumed = ftcli("train", "--resume", "runs/photos/stages/head.pt", "--json")
    assert resumed.code == 0
    assert resumed.json["run"] == str(work_dir_with_run / "runs/photos-2")
    assert [stage["name"] for stage in resumed.json["stages"]] == ["all"]
    # Same as without interruption: a stage depends on the seed and its name, not on earlier stages.
    assert resumed.json["stages"][0]["val_loss"] == full_run["stages"][1]["val_loss"]


def test_resume_after_last_stage_reports_error(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "--resume", "runs/photos/stages/all.pt")
    assert outcome.code == 2
    assert outcome.errors == [
        "--resume runs/photos/stages/all.pt: is from all, the last stage, so no stage is left to train; add --stage "
        "all to train it again from these weights, or evaluate it with `ftcli evaluate runs/photos/stages/all.pt`"
    ]


def test_resume_of_finished_run_reports_its_result(work_dir: Path, ftcli: Ftcli) -> None:
    first = ftcli("train", "r.yaml", "--json").json
    before = {path: path.stat().st_mtime_ns for path in (work_dir / "runs").rglob("*")}
    again = ftcli("train", "--resume", "runs/photos/last.pt", "--json")
    assert again.code == 0
    assert again.json == first
    assert {path: path.stat().st_mtime_ns for path in (work_dir / "runs").rglob("*")} == before


def test_exact_resume_refuses_overrides(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "--resume", "runs/photos/last.pt", "--set", "seed=1")
    assert outcome.code == 2
    assert outcome.errors == [
        "--set seed=1: runs/photos/last.pt resumes exactly, in its own run directory and with its own settings; "
        "omit --set, or add --stage to start a new run from its weights"
    ]


@pytest.mark.covers("name")
def test_resume_with_recipe_uses_its_settings(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    text = (
        (work_dir_with_run / "r.yaml")
        .read_text()
        .replace("lr: 1e-3", "lr: 1e-4")
        .replace("name: photos", "name: other")
    )
    (work_dir_with_run / "other.yaml").write_text(text)
    outcome = ftcli("train", "other.yaml", "--resume", "runs/photos/stages/head.pt", "--json")
    assert outcome.code == 0
    assert outcome.json["run"] == str(work_dir_with_run / "runs/other")
    assert [stage["name"] for stage in outcome.json["stages"]] == ["all"]
    assert read_checkpoint(work_dir_with_run / "runs/other/last.pt").recipe["stages"][1]["optimizer"]["lr"] == 1e-4
    wider = ftcli("train", "other.yaml", "--resume", "runs/photos/stages/head.pt", "--set", "head.hidden=[8]")
    assert wider.code == 4
    assert wider.errors == [
        "runs/photos/stages/head.pt: does not fit shufflenet_v2_x0_5 with this head: 3 have another shape (fc.0.weight "
        "is (16, 1024), not (8, 1024), fc.0.bias is (16,), not (8,), fc.3.weight is (2, 16), not (2, 8)); give the "
        "recipe that it was trained with, or omit the recipe"
    ]


def test_resume_refuses_other_classes(work_dir_with_run: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir_with_run / "others")
    for split in ("train", "test"):
        (work_dir_with_run / "others" / split / "china").rename(work_dir_with_run / "others" / split / "temple")
    arguments = ("--stage", "all", "--resume", "runs/photos/best_loss.pt", "--set", "data.root=others")
    outcome = ftcli("train", *arguments)
    assert outcome.code == 4
    assert outcome.errors == [
        "runs/photos/best_loss.pt: was trained on other classes than those of others (missing there: china; unknown "
        "to the checkpoint: temple); give the data it was trained on, or train again"
    ]


def test_resume_matches_classes_by_name(work_dir: Path, ftcli: Ftcli) -> None:
    ftcli("train", "r.yaml", "--stage", "head", "--set", "data.classes=[flower, china]")
    checkpoint = read_checkpoint(work_dir / "runs/photos/best_loss.pt")
    assert checkpoint.classes == ("flower", "china")
    outcome = ftcli("train", "r.yaml", "--stage", "all", "--resume", "runs/photos/best_loss.pt", "--json")
    assert outcome.json["stages"][0]["start_val_loss"] == checkpoint.metrics["val_loss"]
    assert read_checkpoint(Path(outcome.json["best_loss"])).classes == ("flower", "china")


def test_resume_keeps_splits_when_images_are_added(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    ftcli("train", "r.yaml", "--stage", "head", "--set", "data.root=photos")
    for number in range(20):
        source = work_dir / f"photos/train/china/{number}.jpg"
        shutil.copy(source, source.with_name(f"new{number}.jpg"))
    ftcli("train", "--stage", "all", "--resume", "runs/photos/best_loss.pt")
    before = read_checkpoint(work_dir / "runs/photos/best_loss.pt").splits_by_path()
    after = read_checkpoint(work_dir / "runs/photos-2/best_loss.pt").splits_by_path()
    assert len(after) == len(before) + 20
    assert {path: after[path] for path in before} == before


def test_resume_keeps_splits_with_several_roots(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    ftcli("train", "r.yaml", "--stage", "head", "--set", "data.root=photos")
    other = ("--stage", "all", "--set", "seed=7", "--resume")
    ftcli("train", *other, "runs/photos/best_loss.pt", "--set", "data.root=[photos]")
    ftcli("train", *other, "runs/photos-2/best_loss.pt", "--set", "data.root=./photos")
    before = read_checkpoint(work_dir / "runs/photos/best_loss.pt").splits_by_path()
    several = read_checkpoint(work_dir / "runs/photos-2/best_loss.pt").splits_by_path()
    assert {path.removeprefix("photos/"): split for path, split in several.items()} == before
    assert read_checkpoint(work_dir / "runs/photos-3/best_loss.pt").splits_by_path() == before


@pytest.mark.covers("data.normalize")
def test_normalize_dataset_is_measured_and_stored(work_dir: Path, ftcli: Ftcli) -> None:
    ftcli("train", "r.yaml", "--stage", "head", "--set", "data.normalize=dataset")
    measured = read_checkpoint(work_dir / "runs/photos/best_loss.pt").preprocessing
    assert measured.mean != (0.485, 0.456, 0.406)
    ftcli("train", "--stage", "all", "--resume", "runs/photos/best_loss.pt")
    assert read_checkpoint(work_dir / "runs/photos-2/best_loss.pt").preprocessing == measured


def test_resume_can_change_normalization(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    resume = ("train", "--stage", "all", "--resume", "runs/photos/best_loss.pt", "--set")
    ftcli(*resume, "data.normalize=dataset", "--out", "measured")
    ftcli(*resume, "data.normalize={mean: [0, 0, 0], std: [1, 1, 1]}", "--out", "given")
    means = [read_checkpoint(Path(folder) / "best_loss.pt").preprocessing.mean for folder in ("measured", "given")]
    assert means[0] not in ((0.485, 0.456, 0.406), (0.0, 0.0, 0.0))
    assert means[1] == (0.0, 0.0, 0.0)


def test_train_refuses_out_with_existing_run(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "r.yaml", "--out", "runs/photos")
    assert outcome.code == 2
    assert outcome.errors == [
        "--out: runs/photos already contains a run; choose another folder, or continue it with --resume "
        "runs/photos/last.pt"
    ]


@pytest.mark.covers("stages.optimizer.lr")
def test_train_stops_on_nonfinite_loss_and_keeps_best(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    changes = ("--set", "stages.all.optimizer.lr=1e6", "--set", "stages.all.lr_mult={backbone: 1e6}")
    outcome = ftcli(
        "train", "--resume", "runs/photos/stages/head.pt", *changes, "--set", "stages.all.schedule=constant"
    )
    assert outcome.code == 1
    (message,) = outcome.errors
    assert re.match(
        r"stage all, epoch \d, (step \d of 4|validation): the loss is (nan|inf) at learning rate 1e\+06; ", message
    )
    assert message.endswith(
        "; lower stages.all.optimizer.lr or set stages.all.clip_grad_norm; the best checkpoint so far is "
        "runs/photos-2/best_loss.pt"
    )
    assert read_checkpoint(work_dir_with_run / "runs/photos-2/best_loss.pt").epoch == 0


@pytest.mark.covers("stages.early_stopping.patience")
def test_early_stopping_ends_stage(work_dir: Path, ftcli: Ftcli) -> None:
    result = ftcli(
        "train",
        "r.yaml",
        "--stage",
        "head",
        "--json",
        *("--set", "stages.head.epochs=9"),
        *("--set", "stages.head.early_stopping={patience: 2, min_delta: 5}"),
    ).json
    assert result["stages"][0]["epochs"] == 2
