"""Tests of the files of a run, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import CheckpointError
from ftcli.results import EpochMetrics
from ftcli.runs.history import (
    is_run_checkpoint,
    is_stage_checkpoint,
    read_history,
    read_run_metadata,
    run_of_checkpoint,
)
from ftcli.runs.run_dir import RunDir

HISTORY = [
    EpochMetrics("head", 0, None, None, 0.7, 0.5, None, 1.5, None),
    EpochMetrics("head", 1, 0.6, 0.6, 0.65, 0.5, 0.1, 2, 30.0),
    EpochMetrics("all", 0, None, None, 0.65, 0.5, None, 1.5, None),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    Path("a/stages").mkdir(parents=True)
    RunDir(Path("a")).write_metrics(HISTORY)
    return RunDir(Path("a"))


def test_read_history_round_trips(folder: RunDir) -> None:
    assert read_history(folder) == tuple(HISTORY)


LINE = json.dumps(HISTORY[0].to_dict())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (LINE[:40], "was not written by ftcli train (Unterminated string starting at: line 1 column 31 (char 30))"),
        ("[]", "was not written by ftcli train (it does not contain a mapping)"),
        (LINE.replace("val_loss", "valid_loss"), "was not written by ftcli train (val_loss is missing)"),
        (LINE.replace('"lr"', '"x": 1, "lr"'), "was not written by ftcli train (x is unknown)"),
        (LINE.replace("0.7", '"0.7"'), "was not written by ftcli train (val_loss is '0.7', not a finite number)"),
        (LINE.replace("0.7", "NaN"), "was not written by ftcli train (val_loss is nan, not a finite number)"),
        (
            LINE.replace('"epoch": 0', '"epoch": true'),
            "was not written by ftcli train (stage is not a string, or epoch is not an integer)",
        ),
        (LINE.replace('"epoch": 0', '"epoch": 2'), "has epoch 2 of stage head, expected epoch 0"),
    ],
)
def test_read_history_rejects_corrupt_line(folder: RunDir, line: str, problem: str) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join([*lines, line]))
    with pytest.raises(CheckpointError) as error:
        read_history(folder)
    assert str(error.value) == f"a/metrics.jsonl:4: {problem}; restore the file"


def test_read_history_detects_missing_epoch(folder: RunDir) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join(lines[1:]))
    with pytest.raises(CheckpointError) as error:
        read_history(folder)
    assert str(error.value) == ("a/metrics.jsonl:1: has epoch 1 of stage head, expected epoch 0; restore the file")


def test_history_reports_unreadable_files(folder: RunDir) -> None:
    messages = []
    folder.metadata.write_bytes(b"\xff")
    folder.metrics.unlink()
    for read in (read_history, read_run_metadata):
        with pytest.raises(CheckpointError) as error:
            read(folder)
        messages.append(str(error.value))
    for text in ("{", "[]"):
        folder.metadata.write_text(text)
        with pytest.raises(CheckpointError) as error:
            read_run_metadata(folder)
        messages.append(str(error.value))
    assert messages == [
        "a/metrics.jsonl: cannot be read (No such file or directory); restore the file",
        "a/run.json: is not UTF-8 text; restore the file",
        "a/run.json: is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "restore the file",
        "a/run.json: does not contain a mapping; restore the file",
    ]


def test_run_of_checkpoint_finds_run(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of_checkpoint(Path("a/best_loss.pt")) == run_of_checkpoint(Path("a/stages/head.pt")) == folder
    assert run_of_checkpoint(Path("a/export/model.pt")) is None  # an exported copy
    assert run_of_checkpoint(Path("best_loss.pt")) is None
    monkeypatch.chdir("a/stages")
    found = run_of_checkpoint(Path("head.pt"))
    assert found is not None
    assert len(read_history(found)) == 3


def test_run_of_checkpoint_handles_run_named_stages(folder: RunDir) -> None:
    Path("stages/stages").mkdir(parents=True)
    run = RunDir(Path("stages"))
    run.write_metrics(HISTORY)
    run.last_checkpoint.touch()
    assert run_of_checkpoint(run.last_checkpoint) == run_of_checkpoint(run.stage_checkpoint("head")) == run
    assert not is_stage_checkpoint(run.last_checkpoint)
    assert is_stage_checkpoint(run.stage_checkpoint("head"))
    assert is_stage_checkpoint(folder.stage_checkpoint("head"))
    assert is_run_checkpoint(run.last_checkpoint)
