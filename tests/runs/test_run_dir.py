"""Tests of run directories and of the search for checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.errors import CheckpointError, RecipeError
from ftcli.results import EpochMetrics
from ftcli.runs.run_dir import RunDir, choose_run_dir, find_checkpoint


@pytest.fixture(autouse=True)
def _change_to_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start_run(folder: str) -> Path:
    run = RunDir(Path(folder))
    run.write_initial_files("name: x\n", {})
    run.best_checkpoint.write_text("")
    return run.best_checkpoint


def test_choose_run_dir_numbers_second_run() -> None:
    assert choose_run_dir(None, "x") == (RunDir(Path("runs/x")), None)
    start_run("runs/x")
    start_run("runs/x-2")
    assert choose_run_dir(None, "x") == (
        RunDir(Path("runs/x-3")),
        "runs/x already contains a run; writing to runs/x-3",
    )


def test_choose_run_dir_rejects_used_folder() -> None:
    start_run("mine")
    with pytest.raises(RecipeError) as caught:
        choose_run_dir(Path("mine"), "x")
    assert str(caught.value) == (
        "--out: mine already contains a run; choose another folder, or continue it with --resume mine/last.pt"
    )


def test_remove_if_empty_frees_name() -> None:
    run = RunDir(Path("runs/x"))
    run.write_initial_files("name: x\n", {})
    run.remove_if_empty()
    assert not Path("runs/x").exists()


def test_choose_run_dir_reuses_killed_run() -> None:
    run = RunDir(Path("runs/x"))
    run.write_initial_files("name: x\n", {})
    program = "from pathlib import Path; from ftcli.files import lock_dir\n"
    program += "with lock_dir(Path('runs/x')): print('locked', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        assert choose_run_dir(None, "x") == (
            RunDir(Path("runs/x-2")),
            "runs/x already contains a run; writing to runs/x-2",
        )
        process.kill()
    assert choose_run_dir(None, "x") == (run, None)
    assert choose_run_dir(Path("runs/x"), "x") == (run, None)
    run.metrics.write_text("")
    assert choose_run_dir(None, "x")[0] == RunDir(Path("runs/x-2"))


def test_remove_if_empty_keeps_user_files() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    run = RunDir(Path("mine"))
    run.write_initial_files("name: x\n", {})
    run.remove_if_empty()
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_find_checkpoint_searches_runs() -> None:
    best = start_run("runs/x")
    assert find_checkpoint(Path("best_loss.pt")) == (
        best,
        "best_loss.pt does not exist in this folder; using runs/x/best_loss.pt",
    )
    Path("best_loss.pt").write_text("")
    assert find_checkpoint(Path("best_loss.pt")) == (Path("best_loss.pt"), None)


def test_find_checkpoint_rejects_ambiguous_name() -> None:
    start_run("runs/x")
    start_run("runs/y")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(Path("best_loss.pt"))
    assert str(caught.value) == (
        "best_loss.pt: exists in 2 runs: runs/x/best_loss.pt, runs/y/best_loss.pt; give the path of one"
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "best_loss.pt",
            "best_loss.pt: does not exist, here or in runs/*/; train first, or give the path of a checkpoint",
        ),
        (
            "runs/y/best_loss.pt",
            "runs/y/best_loss.pt: does not exist; give the path of a checkpoint, such as runs/NAME/best_loss.pt",
        ),
        ("runs", "runs: is a folder; give a checkpoint in it, such as runs/best_loss.pt"),
    ],
)
def test_find_checkpoint_reports_missing_file(path: str, message: str) -> None:
    Path("runs").mkdir()
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(Path(path))
    assert str(caught.value) == message


def test_run_dir_rewrites_metrics_and_curves() -> None:
    start_run("runs/x")
    run = RunDir(Path("runs/x"))
    history = [
        EpochMetrics("head", 0, None, None, 0.7, 0.5, None, 1.0, None),
        EpochMetrics("head", 1, 0.6, 0.6, 0.5, 0.8, 0.1, 1.0, 9.0),
        EpochMetrics("all", 0, None, None, 0.5, 0.8, None, 1.0, None),
        EpochMetrics("all", 1, 0.4, 0.9, 0.4, 0.9, 0.01, 1.0, 9.0),
    ]
    run.write_metrics(history)
    run.write_metrics(history)
    assert len(run.metrics.read_text().splitlines()) == 4
    run.write_curves(history)
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
