"""Tests that a run that was killed and resumed ends in the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcli.files import lock_dir
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint

TIMING_KEYS = {"seconds", "images_per_second", "training_seconds", "start_times", "times"}


def flatten(value: Any, key_path: str = "") -> dict[str, Any]:
    """Return the leaves of a checkpoint by their key path, without those of TIMING_KEYS."""
    if isinstance(value, dict):
        items = [(key, inner) for key, inner in value.items() if key not in TIMING_KEYS]
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {key_path: value}
    return {key: leaf for name, inner in items for key, leaf in flatten(inner, f"{key_path}/{name}").items()}


def assert_same_checkpoint(actual: Checkpoint, expected: Checkpoint) -> None:
    actual_leaves, expected_leaves = flatten(vars(actual)), flatten(vars(expected))
    for leaves in (actual_leaves, expected_leaves):
        del leaves["/digest"]
    assert actual_leaves.keys() == expected_leaves.keys()
    for key_path, value in actual_leaves.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == expected_leaves[key_path].dtype
            assert torch.equal(value, expected_leaves[key_path]), key_path
        else:
            assert value == expected_leaves[key_path], key_path


CHECKPOINT_FILES = ("last.pt", "best_loss.pt", "stages/head.pt", "stages/all.pt")


@pytest.fixture(scope="module")
def checkpoints_by_file() -> dict[str, Checkpoint]:
    """The checkpoints of an uninterrupted run, by file; filled by the first test that needs them."""
    return {}


def read_without_run_settings(path: Path) -> Checkpoint:
    """Read a checkpoint without the number of workers, which changes no bit, and without the path of its run."""
    checkpoint = read_checkpoint(path)
    checkpoint.recipe["data"].pop("num_workers")
    checkpoint.origin.pop("run", None)  # type: ignore[attr-defined]  # a plain dict when read
    return checkpoint


@pytest.fixture
def uninterrupted(
    work_dir: Path, training: Callable[..., int], checkpoints_by_file: dict[str, Checkpoint]
) -> dict[str, Checkpoint]:
    if not checkpoints_by_file:
        assert training(work_dir, "train", "r.yaml", "--out", "uninterrupted", cache="own-cache") == 0
        checkpoints_by_file.update(
            {name: read_without_run_settings(work_dir / "uninterrupted" / name) for name in CHECKPOINT_FILES}
        )
    return checkpoints_by_file


KILLS = [
    ("SIGKILL", "update_progress", "head 1/2", 2),
    ("SIGKILL", "log_epoch", "head", 0),
    ("SIGKILL", "log_epoch", "head", 1),
    ("SIGKILL", "log_epoch", "head", 2),
    ("SIGKILL", "log_epoch", "all", 0),
    ("SIGKILL", "update_progress", "all 1/2", 3),
    ("SIGKILL", "update_progress", "all 1 validation", 1),
    ("SIGKILL", "log_epoch", "all", 1),
    ("SIGKILL", "log_epoch", "all", 2),
    ("SIGKILL", "update_progress", "test", 1),
    ("SIGINT", "update_progress", "head 2/2", 1),
    ("SIGTERM", "update_progress", "all 2/2", 2),
    ("SIGTERM", "update_progress", "all 1 validation", 1),
    ("SIGINT", "update_progress", "head 0 validation", 1),
    ("SIGINT", "update_progress", "test", 1),
]
EXITS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}


# The features of stage head are cached, so that no worker loads images while its head trains. With workers there are
# kills within an epoch, between epochs, in validation and in the test, and each signal.
WITH_WORKERS = [KILLS[number] for number in (5, 7, 11, 12, 14)]
CASES = [*((kill, 0) for kill in KILLS), *((kill, 2) for kill in WITH_WORKERS)]


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "num_workers"), CASES, ids=str)
def test_resume_after_kill_gives_same_bits(
    work_dir: Path,
    training: Callable[..., int],
    kill_by: Callable[..., Any],
    uninterrupted: dict[str, Checkpoint],
    kill: tuple[str, str, str, int],
    num_workers: int,
) -> None:
    setting = f"--set=data.num_workers={num_workers}"
    assert training(work_dir, "train", "r.yaml", "--out", "run", setting, kill=kill_by(*kill)) == EXITS[kill[0]]
    assert training(work_dir, "train", "--resume", "run/last.pt") == 0
    for name in CHECKPOINT_FILES:
        assert_same_checkpoint(read_without_run_settings(work_dir / "run" / name), uninterrupted[name])
    history = [json.loads(line) for line in (work_dir / "run/metrics.jsonl").read_text().splitlines()]
    assert [(metrics["stage"], metrics["epoch"]) for metrics in history] == [
        (s, e) for s in ("head", "all") for e in range(3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "code"), [("SIGKILL", -9), ("SIGTERM", 143)])
def test_kill_during_feature_caching_gives_same_bits(
    work_dir: Path,
    training: Callable[..., int],
    kill_by: Callable[..., Any],
    uninterrupted: dict[str, Checkpoint],
    signal: str,
    code: int,
) -> None:
    kill = kill_by(signal, "update_progress", "head: feature extraction, train", 46)
    assert training(work_dir, "train", "r.yaml", "--out", "run", kill=kill, cache="cold") == code
    arguments = ("r.yaml", "--out", "run") if signal == "SIGKILL" else ("--resume", "run/last.pt")
    assert training(work_dir, "train", *arguments, cache="cold") == 0
    for name in CHECKPOINT_FILES:
        assert_same_checkpoint(read_without_run_settings(work_dir / "run" / name), uninterrupted[name])


def test_resume_uses_images_of_original_run(
    work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any], photo_folder: Path
) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    root = ("--set", "data.root=photos")
    arguments = ("train", "r.yaml", "--stage", "head", *root)
    assert training(work_dir, *arguments, "--out", "uninterrupted") == 0
    assert (
        training(work_dir, *arguments, "--out", "run", kill=kill_by("SIGTERM", "update_progress", "head 2/2", 1)) == 143
    )
    log = work_dir / "log.txt"
    assert "error: Stopped in stage head, epoch 2, step 1 of 4; continue with: ftcli train --resume run/last.pt" in (
        log.read_text().splitlines()
    )
    image = work_dir / "photos/train/china/5.jpg"
    moved = image.rename(work_dir / "moved.jpg")
    assert training(work_dir, "train", "--resume", "run/last.pt") == 3
    assert log.read_text().splitlines()[-1] == (
        "error: photos: 1 of 52 images that the run started with do not exist; the first: train/china/5.jpg; restore "
        "them, or add --stage to start a new run from the weights of run/last.pt"
    )
    moved.rename(image)
    shutil.copy(image, image.with_name("new.jpg"))
    assert training(work_dir, "train", "--resume", "run/last.pt") == 0
    assert "warning: photos: 1 image added after the run started, which it does not use" in log.read_text()
    uninterrupted, resumed = (
        read_checkpoint(work_dir / folder / "last.pt").state for folder in ("uninterrupted", "run")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


def test_second_signal_stops_immediately(
    work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any]
) -> None:
    kill = kill_by("SIGINT", "update_progress", "head 1/2", 1)
    assert training(work_dir, "train", "r.yaml", "--out", "run", kill=kill, num_signals=2) == 130


def test_resume_refuses_locked_run_directory(
    work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any]
) -> None:
    assert training(work_dir, "train", "r.yaml", "--out", "run", kill=kill_by("SIGTERM", "log_epoch", "head", 1)) == 143
    with lock_dir(work_dir / "run"):
        assert training(work_dir, "train", "--resume", "run/last.pt") == 2
    assert (work_dir / "log.txt").read_text().splitlines()[-1] == (
        f"error: run: is in use by another ftcli (process {os.getpid()}); wait until it ends, or give another --out"
    )
