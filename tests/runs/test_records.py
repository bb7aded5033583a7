"""What a run has written down is read back whole, or refused with the line that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import CheckpointError
from ftcli.results import EpochRow
from ftcli.runs.folder import RunFolder
from ftcli.runs.records import find_run, is_of_run, is_of_stage, read_manifest, read_rows

ROWS = [
    EpochRow("head", 0, None, None, 0.7, 0.5, None, 1.5, None),
    EpochRow("head", 1, 0.6, 0.6, 0.65, 0.5, 0.1, 2, 30.0),
    EpochRow("all", 0, None, None, 0.65, 0.5, None, 1.5, None),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    Path("a/stages").mkdir(parents=True)
    RunFolder(Path("a")).write_metrics(ROWS)
    return RunFolder(Path("a"))


def test_rows_come_back_as_they_were_written(folder: RunFolder) -> None:
    assert read_rows(folder) == tuple(ROWS)


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
def test_a_damaged_line_is_refused(folder: RunFolder, line: str, fault: str) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join([*lines, line]))
    with pytest.raises(CheckpointError) as error:
        read_rows(folder)
    assert str(error.value) == f"a/metrics.jsonl:4: {fault}; put the file back as it was"


def test_an_epoch_that_is_missing_is_seen(folder: RunFolder) -> None:
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join(lines[1:]))
    with pytest.raises(CheckpointError) as error:
        read_rows(folder)
    assert str(error.value) == (
        "a/metrics.jsonl:1: is epoch 1 of the stage head, where epoch 0 would follow; put the file back as it was"
    )


def test_files_that_cannot_be_read(folder: RunFolder) -> None:
    faults = []
    folder.manifest.write_bytes(b"\xff")
    folder.metrics.unlink()
    for read in (read_rows, read_manifest):
        with pytest.raises(CheckpointError) as error:
            read(folder)
        faults.append(str(error.value))
    for text in ("{", "[]"):
        folder.manifest.write_text(text)
        with pytest.raises(CheckpointError) as error:
            read_manifest(folder)
        faults.append(str(error.value))
    assert faults == [
        "a/metrics.jsonl: cannot be read (No such file or directory); put the file back as it was",
        "a/run.json: is no UTF-8 text; put the file back as it was",
        "a/run.json: is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "put the file back as it was",
        "a/run.json: holds no mapping; put the file back as it was",
    ]


def test_the_run_of_a_checkpoint(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(Path("a/best_loss.pt")) == find_run(Path("a/stages/head.pt")) == folder
    assert find_run(Path("a/export/model.pt")) is None  # what was made of it is elsewhere
    assert find_run(Path("best_loss.pt")) is None
    monkeypatch.chdir("a/stages")
    found = find_run(Path("head.pt"))
    assert found is not None
    assert len(read_rows(found)) == 3


def test_a_run_may_be_called_stages(folder: RunFolder) -> None:
    Path("stages/stages").mkdir(parents=True)
    run = RunFolder(Path("stages"))
    run.write_metrics(ROWS)
    run.last.touch()
    assert find_run(run.last) == find_run(run.stage("head")) == run
    assert not is_of_stage(run.last)
    assert is_of_stage(run.stage("head"))
    assert is_of_stage(folder.stage("head"))
    assert is_of_run(run.last)
