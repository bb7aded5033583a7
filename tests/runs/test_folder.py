"""Names of run folders, and finding a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.errors import CheckpointError, RecipeError
from ftcli.results import EpochRow
from ftcli.runs.folder import RunFolder, choose_folder, find_checkpoint


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begin(folder: str) -> Path:
    run = RunFolder(Path(folder))
    run.prepare("name: x\n", {})
    run.best_loss.write_text("")
    return run.best_loss


def test_a_second_run_gets_the_next_number() -> None:
    assert choose_folder(None, "x") == (RunFolder(Path("runs/x")), None)
    begin("runs/x")
    begin("runs/x-2")
    assert choose_folder(None, "x") == (
        RunFolder(Path("runs/x-3")),
        "runs/x already holds a run; this one goes to runs/x-3",
    )


def test_an_explicit_folder_that_holds_a_run_is_refused() -> None:
    begin("mine")
    with pytest.raises(RecipeError) as caught:
        choose_folder(Path("mine"), "x")
    assert str(caught.value) == (
        "--out: mine already holds a run; give another folder, or go on with --resume mine/last.pt"
    )


def test_a_run_that_never_began_leaves_its_name_free() -> None:
    run = RunFolder(Path("runs/x"))
    run.prepare("name: x\n", {})
    run.discard_unbegun()
    assert not Path("runs/x").exists()


def test_a_run_that_was_killed_before_it_was_measured_leaves_its_name_free() -> None:
    run = RunFolder(Path("runs/x"))
    run.prepare("name: x\n", {})
    holder = "from pathlib import Path; from ftcli.storage import hold_folder\n"
    holder += "with hold_folder(Path('runs/x')): print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert choose_folder(None, "x") == (
            RunFolder(Path("runs/x-2")),
            "runs/x already holds a run; this one goes to runs/x-2",
        )
        process.kill()
    assert choose_folder(None, "x") == (run, None)
    assert choose_folder(Path("runs/x"), "x") == (run, None)
    run.metrics.write_text("")
    assert choose_folder(None, "x")[0] == RunFolder(Path("runs/x-2"))


def test_what_the_user_put_there_stays() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    run = RunFolder(Path("mine"))
    run.prepare("name: x\n", {})
    run.discard_unbegun()
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_a_bare_name_is_looked_for_in_the_runs() -> None:
    best = begin("runs/x")
    assert find_checkpoint(Path("best_loss.pt")) == (
        best,
        "best_loss.pt is not in this folder; runs/x/best_loss.pt is used",
    )
    Path("best_loss.pt").write_text("")
    assert find_checkpoint(Path("best_loss.pt")) == (Path("best_loss.pt"), None)


def test_a_bare_name_in_several_runs_is_refused() -> None:
    begin("runs/x")
    begin("runs/y")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(Path("best_loss.pt"))
    assert str(caught.value) == (
        "best_loss.pt: is in 2 runs: runs/x/best_loss.pt, runs/y/best_loss.pt; give the path of one"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "best_loss.pt",
            "best_loss.pt: there is no such file, here or in runs/*/; train first, or give the path of a checkpoint",
        ),
        (
            "runs/y/best_loss.pt",
            "runs/y/best_loss.pt: there is no such file; give the path of a checkpoint, such as runs/NAME/best_loss.pt",
        ),
        ("runs", "runs: is a folder; give a checkpoint in it, such as runs/best_loss.pt"),
    ],
)
def test_a_missing_checkpoint_is_told(given: str, sentence: str) -> None:
    Path("runs").mkdir()
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(Path(given))
    assert str(caught.value) == sentence


def test_curves_and_metrics_are_written_whole() -> None:
    begin("runs/x")
    run = RunFolder(Path("runs/x"))
    rows = [
        EpochRow("head", 0, None, None, 0.7, 0.5, None, 1.0, None),
        EpochRow("head", 1, 0.6, 0.6, 0.5, 0.8, 0.1, 1.0, 9.0),
        EpochRow("all", 0, None, None, 0.5, 0.8, None, 1.0, None),
        EpochRow("all", 1, 0.4, 0.9, 0.4, 0.9, 0.01, 1.0, 9.0),
    ]
    run.write_metrics(rows)
    run.write_metrics(rows)
    assert len(run.metrics.read_text().splitlines()) == 4
    run.write_curves(rows)
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
