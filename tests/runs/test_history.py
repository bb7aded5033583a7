"""What a run has written down is read back whole, or refused with the line that is damaged."""

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

ROWS = [
    EpochMetrics("head", 0, None, None, 0.7, 0.5, None, 1.5, None),
    EpochMetrics("head", 1, 0.6, 0.6, 0.65, 0.5, 0.1, 2, 30.0),
    EpochMetrics("all", 0, None, None, 0.65, 0.5, None, 1.5, None),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    Path("a/stages").mkdir(parents=True)
    RunDir(Path("a")).write_metrics(ROWS)
    return RunDir(Path("a"))


def test_read_history_round_trips(folder: RunDir) -> None:
    assert read_history(folder) == tuple(ROWS)


LINE = json.dumps(ROWS[0].to_dict())


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (LINE[:40], "is no line that ftcli train wrote (Unterminated string starting at: line 1 column 31 (char 30))"),
        ("[]", "is no line that ftcli train wrote (it holds no mapping)"),
        (LINE.replace("val_loss", "valid_loss"), "is no line that ftcli train wrote (val_loss is missing)"),
        (LINE.replace('"lr"', '"x": 1, "lr"'), "is no line that ftcli train wrote (x is unknown)"),
        (LINE.replace("0.7", '"0.7"'), "is no line that ftcli train wrote (val_loss is '0.7', no finite number)"),
        (LINE.replace("0.7", "NaN"), "is no line that ftcli train wrote (val_loss is nan, no finite number)"),
        (
            LINE.replace('"epoch": 0', '"epoch": true'),
            "is no line that ftcli train wrote (stage is no text, or epoch no whole number)",
        ),
        (LINE.replace('"epoch": 0', '"epoch": 2'), "is epoch 2 of the stage head, where epoch 0 would follow"),
    ],
)
def test_read_history_rejects_damaged_line(folder: RunDir, line: str, fault: str) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join([*lines, line]))
    with pytest.raises(CheckpointError) as error:
        read_history(folder)
    assert str(error.value) == f"a/metrics.jsonl:4: {fault}; put the file back as it was"


def test_read_history_detects_missing_epoch(folder: RunDir) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join(lines[1:]))
    with pytest.raises(CheckpointError) as error:
        read_history(folder)
    assert str(error.value) == (
        "a/metrics.jsonl:1: is epoch 1 of the stage head, where epoch 0 would follow; put the file back as it was"
    )


def test_history_reports_unreadable_files(folder: RunDir) -> None:
    faults = []
    folder.metadata.write_bytes(b"\xff")
    folder.metrics.unlink()
    for read in (read_history, read_run_metadata):
        with pytest.raises(CheckpointError) as error:
            read(folder)
        faults.append(str(error.value))
    for text in ("{", "[]"):
        folder.metadata.write_text(text)
        with pytest.raises(CheckpointError) as error:
            read_run_metadata(folder)
        faults.append(str(error.value))
    assert faults == [
        "a/metrics.jsonl: cannot be read (No such file or directory); put the file back as it was",
        "a/run.json: is no UTF-8 text; put the file back as it was",
        "a/run.json: is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "put the file back as it was",
        "a/run.json: holds no mapping; put the file back as it was",
    ]


def test_run_of_checkpoint_finds_run(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of_checkpoint(Path("a/best_loss.pt")) == run_of_checkpoint(Path("a/stages/head.pt")) == folder
    assert run_of_checkpoint(Path("a/export/model.pt")) is None  # what was made of it is elsewhere
    assert run_of_checkpoint(Path("best_loss.pt")) is None
    monkeypatch.chdir("a/stages")
    found = run_of_checkpoint(Path("head.pt"))
    assert found is not None
    assert len(read_history(found)) == 3


def test_run_of_checkpoint_handles_run_named_stages(folder: RunDir) -> None:
    Path("stages/stages").mkdir(parents=True)
    run = RunDir(Path("stages"))
    run.write_metrics(ROWS)
    run.last.touch()
    assert run_of_checkpoint(run.last) == run_of_checkpoint(run.stage_checkpoint("head")) == run
    assert not is_stage_checkpoint(run.last)
    assert is_stage_checkpoint(run.stage_checkpoint("head"))
    assert is_stage_checkpoint(folder.stage_checkpoint("head"))
    assert is_run_checkpoint(run.last)
