"""Tests of `ftcli predict`: output formats, corrupt images, streams."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ftcli.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.conftest import Ftcli

CLASS_NAMES = ('a, "b"\nc\\n', "قطة 狗 🐶")


@pytest.fixture
def checkpoint_path(work_dir_with_run: Path, photo_folder: Path) -> Path:
    """A checkpoint in a current folder with photos/, the test images of two classes."""
    shutil.copytree(photo_folder / "test", work_dir_with_run / "photos")
    return Path("runs/photos/best_loss.pt")


@pytest.fixture
def renamed_checkpoint(checkpoint_path: Path) -> Path:
    """The checkpoint with class names that need escaping."""
    write_checkpoint(replace(read_checkpoint(checkpoint_path), classes=CLASS_NAMES), Path("odd.pt"))
    return Path("odd.pt")


@pytest.fixture
def set_stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that sets the bytes of standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def start_predict(*arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ftcli", "predict", *map(str, arguments)], **streams)


def test_predict_agrees_with_evaluate(ftcli: Ftcli, checkpoint_path: Path) -> None:
    result = ftcli("predict", checkpoint_path, "photos", "--json").json
    assert list(result) == ["checkpoint", "classes", "predictions", "failed"]
    assert result["checkpoint"] == str(checkpoint_path.absolute())
    assert result["classes"] == ["china", "flower"]
    assert result["failed"] == []
    paths = [item["path"] for item in result["predictions"]]
    assert paths == sorted(str(path) for path in Path("photos").rglob("*.jpg"))
    assert all(
        sum(score["probability"] for score in item["classes"]) == pytest.approx(1) for item in result["predictions"]
    )
    evaluated = ftcli("evaluate", checkpoint_path, "--data", "photos", "--json").json
    wrong = {item["path"]: item for item in result["predictions"] if item["classes"][0]["name"] not in item["path"]}
    assert 1 - len(wrong) / 12 == pytest.approx(evaluated["accuracy"])
    for error in evaluated["worst"]:
        first = wrong[f"photos/{error['path']}"]["classes"][0]
        assert first["name"] == error["predicted"]
        assert first["probability"] == pytest.approx(error["probability"], abs=1e-6)


def test_predict_does_not_depend_on_batch(ftcli: Ftcli, checkpoint_path: Path) -> None:
    def predict(*arguments: str) -> dict[str, float]:
        predictions = ftcli("predict", checkpoint_path, *arguments, "--json").json["predictions"]
        return {
            item["path"]: {score["name"]: score["probability"] for score in item["classes"]}["china"]
            for item in predictions
        }

    full_result = predict("photos")
    assert len(set(full_result.values())) > 6
    for arguments in (["--batch-size", "1"], ["--batch-size", "5", "--num-workers", "2"], ["--num-workers", "1"]):
        assert predict("photos", *arguments) == pytest.approx(full_result, abs=1e-5)
    alone = predict("photos/flower/22.jpg")
    assert alone == pytest.approx({"photos/flower/22.jpg": full_result["photos/flower/22.jpg"]}, abs=1e-5)


def test_predict_csv_matches_json(ftcli: Ftcli, renamed_checkpoint: Path) -> None:
    (Path("photos") / 'x, "y"').mkdir()
    shutil.copy("photos/china/20.jpg", 'photos/x, "y"/é.jpg')
    result = ftcli("predict", renamed_checkpoint, "photos", "--format", "json").json
    assert result["classes"] == list(CLASS_NAMES)
    rows = list(csv.reader(io.StringIO(ftcli("predict", renamed_checkpoint, "photos", "--format", "csv").out)))
    assert rows[0] == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert len(rows) == 14
    for row, item in zip(rows[1:], result["predictions"], strict=True):
        first, second = item["classes"]
        assert row == [
            item["path"],
            first["name"],
            str(first["probability"]),
            second["name"],
            str(second["probability"]),
        ]
        assert {first["name"], second["name"]} == set(CLASS_NAMES)
    top = ftcli("predict", renamed_checkpoint, "photos/flower", "--top", "1", "--format", "csv").out
    assert top.startswith("path,class_1,probability_1\nphotos/flower/20.jpg,")
    assert ftcli("predict", renamed_checkpoint, "photos", "--top", "1", "--json").json["predictions"][0]["classes"] == [
        result["predictions"][0]["classes"][0]
    ]


def test_predict_prints_table(ftcli: Ftcli, renamed_checkpoint: Path) -> None:
    outcome = ftcli("predict", renamed_checkpoint, "photos/flower/20.jpg", "photos/china/20.jpg")
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["image", "class", "1", "prob.", "class", "2", "prob."]
    assert [row.split()[0] for row in rows] == ["photos/flower/20.jpg", "photos/china/20.jpg"]
    assert all(r'a, "b"\nc\n' in row and "قطة 狗 🐶" in row for row in rows)
    assert outcome.err.startswith("2 images in 1 s, ")


def test_predict_reports_corrupt_image_and_continues(ftcli: Ftcli, checkpoint_path: Path) -> None:
    full_result = ftcli("predict", checkpoint_path, "photos", "--json").json
    Path("photos/china/0.jpg").write_bytes(Path("photos/china/20.jpg").read_bytes()[:400])
    Path("photos/flower/x.png").touch()
    outcome = ftcli(
        "predict", checkpoint_path, "photos", "gone.jpg", "--json", "--num-workers", "1", "--batch-size", "4"
    )
    assert outcome.code == 3
    assert outcome.errors == ["predict: 3 of 15 images cannot be read; the warnings name them"]
    warnings = [line.removeprefix("warning: ") for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert [f"{item['path']}: {item['why']}" for item in outcome.json["failed"]] == warnings
    assert warnings[0].startswith("photos/china/0.jpg: is truncated (")
    assert warnings[1:] == [
        "photos/flower/x.png: is empty (0 bytes)",
        "gone.jpg: cannot be opened (No such file or directory)",
    ]
    assert [item["path"] for item in outcome.json["predictions"]] == [
        item["path"] for item in full_result["predictions"]
    ]
    table = ftcli("predict", checkpoint_path, "photos/flower/x.png", "--out", "out.csv", "--format", "csv")
    assert (table.code, table.out) == (3, "")
    assert Path("out.csv").read_text() == "path,class_1,probability_1,class_2,probability_2\n"
    nothing = ftcli("predict", checkpoint_path, "photos/flower/x.png", "--json")
    assert nothing.json["failed"] == [{"path": "photos/flower/x.png", "why": "is empty (0 bytes)"}]
    assert nothing.json["predictions"] == []


def test_predict_reads_paths_from_stdin(
    ftcli: Ftcli, checkpoint_path: Path, set_stdin: Callable[[bytes], None]
) -> None:
    name = os.fsdecode(b"photos/\xff\n.jpg")
    shutil.copy("photos/china/20.jpg", name)
    set_stdin(b"photos/flower/20.jpg\nphotos/china/21.jpg\n")
    paths = [item["path"] for item in ftcli("predict", checkpoint_path, "-", "--json").json["predictions"]]
    assert paths == ["photos/flower/20.jpg", "photos/china/21.jpg"]
    set_stdin(b"photos/\xff\n.jpg\0photos/china/20.jpg\0")
    same, other = ftcli("predict", checkpoint_path, "-", "--json").json["predictions"]
    assert (same["path"], same["classes"]) == (name, other["classes"])


def test_predict_out_is_written_atomically(ftcli: Ftcli, checkpoint_path: Path) -> None:
    Path("out.json").write_text("old")
    outcome = ftcli("predict", checkpoint_path, "photos", "--json", "--out", "out.json")
    assert (outcome.code, outcome.out) == (0, "")
    assert json.loads(Path("out.json").read_text()) == ftcli("predict", checkpoint_path, "photos", "--json").json
    missing = ftcli("predict", checkpoint_path, "photos", "--out", "no/out.csv")
    assert missing.code == 1
    assert missing.errors == [
        "no/out.csv: cannot be written (No such file or directory); check the folder and its permissions"
    ]


@pytest.mark.slow
def test_predict_out_is_absent_when_terminated(checkpoint_path: Path) -> None:
    line = b"photos/china/20.jpg\n"
    with start_predict(
        checkpoint_path, "-", "--format", "csv", "--out", "out.csv", stdin=subprocess.PIPE, stderr=-1
    ) as process:
        assert process.stdin
        process.stdin.write(line * 5_000)  # more than is read ahead, without end of file
        process.stdin.flush()
        until = time.monotonic() + 120
        while not any(path.stat().st_size for path in Path().glob(".out.csv.*.tmp")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not [path.name for path in Path().iterdir() if "out." in path.name]


@pytest.mark.slow
def test_predict_shows_progress_on_stderr_only(checkpoint_path: Path) -> None:
    pty_fd, tty = pty.openpty()
    with (
        Path("out.json").open("w") as file,
        start_predict(checkpoint_path, "photos", "--json", "--batch-size", "2", stdout=file, stderr=tty) as process,
    ):
        process.wait(timeout=120)
    os.close(tty)
    shown = os.read(pty_fd, 1_000_000)
    os.close(pty_fd)
    assert len(json.loads(Path("out.json").read_text())["predictions"]) == 12
    assert b"predicting" in shown
    assert b"12/12" in shown


def test_predict_reports_no_images(ftcli: Ftcli, checkpoint_path: Path) -> None:
    Path("empty").mkdir()
    for arguments, sentence in (
        ([], "predict: no image is given; name files, folders or patterns, or - for a list on standard input"),
        (["empty"], "empty: contains no image; give a folder with images"),
        (["", "photos"], "predict: an argument is empty; give a file or folder (. is the current folder)"),
        (["p/*.jpg"], "p/*.jpg: matches no image; fix the pattern (** matches any number of folders)"),
    ):
        outcome = ftcli("predict", checkpoint_path, *arguments, "--json", "--out", "out.json")
        assert (outcome.code, outcome.out, outcome.errors) == (3, "", [sentence])
    assert not Path("out.json").exists()


def test_predict_reports_invalid_options(ftcli: Ftcli, checkpoint_path: Path) -> None:
    outcome = ftcli("predict", checkpoint_path, "photos", "--format", "csv", "--json")
    assert outcome.code == 2
    assert outcome.errors == ["--format csv: cannot be combined with --json; remove one of them"]
    for folder in (".", "photos"):
        outcome = ftcli("predict", checkpoint_path, "photos", "--out", folder)
        assert outcome.code == 2
        assert outcome.errors == [f"--out: {folder} is a folder, link or device; give the name of a file"]
    assert ftcli("predict", checkpoint_path, "photos", "--top", "0").code == 2
    missing = ftcli("predict", "none.pt", "photos")
    assert missing.code == 4
    assert missing.errors == [
        "none.pt: does not exist, here or in runs/*/; train first, or give the path of a checkpoint"
    ]
    shutil.copy(checkpoint_path, "some.jpg")
    assert ftcli("predict", "photos/china/20.jpg", "photos").code == 4


def test_predict_uses_preprocessing_of_checkpoint(ftcli: Ftcli, checkpoint_path: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_path)
    other = replace(checkpoint.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="pad")
    write_checkpoint(replace(checkpoint, preprocessing=other), Path("other.pt"))
    first, second = (
        ftcli("predict", path, "photos", "--json").json["predictions"] for path in (checkpoint_path, "other.pt")
    )
    assert first != second
    with Image.open("photos/china/20.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(
            "turned.jpg", exif=b"Exif\0\0" + create_orientation_exif(6), quality=100
        )
        image.save("upright.jpg", quality=100)
    turned, upright = ftcli("predict", checkpoint_path, "turned.jpg", "upright.jpg", "--json").json["predictions"]
    assert {score["name"]: score["probability"] for score in turned["classes"]} == pytest.approx(
        {score["name"]: score["probability"] for score in upright["classes"]}, abs=0.02
    )


def create_orientation_exif(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")
