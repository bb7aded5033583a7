"""`ftcli predict`: every image gets its classes in every form, or is named."""

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

NAMES = ('a, "b"\nc\\n', "قطة 狗 🐶")


@pytest.fixture
def trained(finished: Path, photo_folder: Path) -> Path:
    """A checkpoint in a current folder that has photos/, the test images of two classes."""
    shutil.copytree(photo_folder / "test", finished / "photos")
    return Path("runs/photos/best_loss.pt")


@pytest.fixture
def renamed(trained: Path) -> Path:
    """The checkpoint with classes whose names are hard to write."""
    write_checkpoint(replace(read_checkpoint(trained), classes=NAMES), Path("odd.pt"))
    return Path("odd.pt")


@pytest.fixture
def give_list(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Let standard input hold some bytes."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def start(*arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ftcli", "predict", *map(str, arguments)], **streams)


def test_the_same_as_an_evaluation(ftcli: Ftcli, trained: Path) -> None:
    told = ftcli("predict", trained, "photos", "--json").json
    assert list(told) == ["checkpoint", "classes", "predictions", "failed"]
    assert told["checkpoint"] == str(trained.absolute())
    assert told["classes"] == ["china", "flower"]
    assert told["failed"] == []
    paths = [one["path"] for one in told["predictions"]]
    assert paths == sorted(str(path) for path in Path("photos").rglob("*.jpg"))
    assert all(sum(guess["probability"] for guess in one["classes"]) == pytest.approx(1) for one in told["predictions"])
    evaluated = ftcli("evaluate", trained, "--data", "photos", "--json").json
    wrong = {one["path"]: one for one in told["predictions"] if one["classes"][0]["name"] not in one["path"]}
    assert 1 - len(wrong) / 12 == pytest.approx(evaluated["accuracy"])
    for mistake in evaluated["worst"]:
        first = wrong[f"photos/{mistake['path']}"]["classes"][0]
        assert first["name"] == mistake["predicted"]
        assert first["probability"] == pytest.approx(mistake["probability"], abs=1e-6)


def test_the_neighbours_of_an_image_change_nothing(ftcli: Ftcli, trained: Path) -> None:
    def predict(*arguments: str) -> dict[str, float]:
        told = ftcli("predict", trained, *arguments, "--json").json["predictions"]
        return {one["path"]: {g["name"]: g["probability"] for g in one["classes"]}["china"] for one in told}

    whole = predict("photos")
    assert len(set(whole.values())) > 6
    for arguments in (["--batch-size", "1"], ["--batch-size", "5", "--num-workers", "2"], ["--num-workers", "1"]):
        assert predict("photos", *arguments) == pytest.approx(whole, abs=1e-5)
    alone = predict("photos/flower/22.jpg")
    assert alone == pytest.approx({"photos/flower/22.jpg": whole["photos/flower/22.jpg"]}, abs=1e-5)


def test_csv_and_json_say_the_same(ftcli: Ftcli, renamed: Path) -> None:
    (Path("photos") / 'x, "y"').mkdir()
    shutil.copy("photos/china/20.jpg", 'photos/x, "y"/é.jpg')
    told = ftcli("predict", renamed, "photos", "--format", "json").json
    assert told["classes"] == list(NAMES)
    rows = list(csv.reader(io.StringIO(ftcli("predict", renamed, "photos", "--format", "csv").out)))
    assert rows[0] == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert len(rows) == 14
    for row, one in zip(rows[1:], told["predictions"], strict=True):
        first, second = one["classes"]
        assert row == [
            one["path"],
            first["name"],
            str(first["probability"]),
            second["name"],
            str(second["probability"]),
        ]
        assert {first["name"], second["name"]} == set(NAMES)
    top = ftcli("predict", renamed, "photos/flower", "--top", "1", "--format", "csv").out
    assert top.startswith("path,class_1,probability_1\nphotos/flower/20.jpg,")
    assert ftcli("predict", renamed, "photos", "--top", "1", "--json").json["predictions"][0]["classes"] == [
        told["predictions"][0]["classes"][0]
    ]


def test_people_get_rows(ftcli: Ftcli, renamed: Path) -> None:
    outcome = ftcli("predict", renamed, "photos/flower/20.jpg", "photos/china/20.jpg")
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["image", "class", "1", "prob.", "class", "2", "prob."]
    assert [row.split()[0] for row in rows] == ["photos/flower/20.jpg", "photos/china/20.jpg"]
    assert all(r'a, "b"\nc\n' in row and "قطة 狗 🐶" in row for row in rows)
    assert outcome.err.startswith("2 images in 1 s, ")


def test_a_broken_image_is_named_and_the_rest_goes_on(ftcli: Ftcli, trained: Path) -> None:
    whole = ftcli("predict", trained, "photos", "--json").json
    Path("photos/china/0.jpg").write_bytes(Path("photos/china/20.jpg").read_bytes()[:400])
    Path("photos/flower/x.png").touch()
    outcome = ftcli("predict", trained, "photos", "gone.jpg", "--json", "--num-workers", "1", "--batch-size", "4")
    assert outcome.code == 3
    assert outcome.faults == ["predict: 3 of 15 images cannot be read; each is named above, the others are predicted"]
    warned = [line.removeprefix("warning: ") for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert [f"{one['path']}: {one['why']}" for one in outcome.json["failed"]] == warned
    assert warned[0].startswith("photos/china/0.jpg: is cut short (")
    assert warned[1:] == [
        "photos/flower/x.png: is empty (0 bytes)",
        "gone.jpg: cannot be opened (No such file or directory)",
    ]
    assert [one["path"] for one in outcome.json["predictions"]] == [one["path"] for one in whole["predictions"]]
    table = ftcli("predict", trained, "photos/flower/x.png", "--out", "told.csv", "--format", "csv")
    assert (table.code, table.out) == (3, "")
    assert Path("told.csv").read_text() == "path,class_1,probability_1,class_2,probability_2\n"
    nothing = ftcli("predict", trained, "photos/flower/x.png", "--json")
    assert nothing.json["failed"] == [{"path": "photos/flower/x.png", "why": "is empty (0 bytes)"}]
    assert nothing.json["predictions"] == []


def test_a_list_on_standard_input(ftcli: Ftcli, trained: Path, give_list: Callable[[bytes], None]) -> None:
    name = os.fsdecode(b"photos/\xff\n.jpg")
    shutil.copy("photos/china/20.jpg", name)
    give_list(b"photos/flower/20.jpg\nphotos/china/21.jpg\n")
    paths = [one["path"] for one in ftcli("predict", trained, "-", "--json").json["predictions"]]
    assert paths == ["photos/flower/20.jpg", "photos/china/21.jpg"]
    give_list(b"photos/\xff\n.jpg\0photos/china/20.jpg\0")
    same, other = ftcli("predict", trained, "-", "--json").json["predictions"]
    assert (same["path"], same["classes"]) == (name, other["classes"])


def test_a_file_appears_whole(ftcli: Ftcli, trained: Path) -> None:
    Path("told.json").write_text("old")
    outcome = ftcli("predict", trained, "photos", "--json", "--out", "told.json")
    assert (outcome.code, outcome.out) == (0, "")
    assert json.loads(Path("told.json").read_text()) == ftcli("predict", trained, "photos", "--json").json
    missing = ftcli("predict", trained, "photos", "--out", "no/told.csv")
    assert missing.code == 1
    assert missing.faults == [
        "no/told.csv: cannot be written (No such file or directory); check the folder and its permissions"
    ]


@pytest.mark.slow
def test_a_file_that_is_not_finished_never_appears(trained: Path) -> None:
    line = b"photos/china/20.jpg\n"
    with start(trained, "-", "--format", "csv", "--out", "told.csv", stdin=subprocess.PIPE, stderr=-1) as process:
        assert process.stdin
        process.stdin.write(line * 5_000)  # more than is read ahead, and no end
        process.stdin.flush()
        until = time.monotonic() + 120
        while not any(path.stat().st_size for path in Path().glob(".told.csv.*.tmp")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not [path.name for path in Path().iterdir() if "told" in path.name]


@pytest.mark.slow
def test_a_bar_on_the_terminal_keeps_out_of_the_results(trained: Path) -> None:
    ours, theirs = pty.openpty()
    with (
        Path("out.json").open("w") as file,
        start(trained, "photos", "--json", "--batch-size", "2", stdout=file, stderr=theirs) as process,
    ):
        process.wait(timeout=120)
    os.close(theirs)
    shown = os.read(ours, 1_000_000)
    os.close(ours)
    assert len(json.loads(Path("out.json").read_text())["predictions"]) == 12
    assert b"predicting" in shown
    assert b"12/12" in shown


def test_nothing_to_predict(ftcli: Ftcli, trained: Path) -> None:
    Path("empty").mkdir()
    for arguments, sentence in (
        ([], "predict: no image is given; name files, folders or patterns, or - for a list on standard input"),
        (["empty"], "empty: holds no image; give a folder that does"),
        (["", "photos"], "predict: an image is given by an empty name; give its file (. is the current folder)"),
        (["p/*.jpg"], "p/*.jpg: fits no image; mend the pattern, in which ** stands for any number of folders"),
    ):
        outcome = ftcli("predict", trained, *arguments, "--json", "--out", "told.json")
        assert (outcome.code, outcome.out, outcome.faults) == (3, "", [sentence])
    assert not Path("told.json").exists()


def test_what_cannot_be_asked(ftcli: Ftcli, trained: Path) -> None:
    outcome = ftcli("predict", trained, "photos", "--format", "csv", "--json")
    assert outcome.code == 2
    assert outcome.faults == ["--format csv: --json asks for another form; give one of the two"]
    for taken in (".", "photos"):
        outcome = ftcli("predict", trained, "photos", "--out", taken)
        assert outcome.code == 2
        assert outcome.faults == [f"--out: {taken} is a folder, link or device; give the name of a file"]
    assert ftcli("predict", trained, "photos", "--top", "0").code == 2
    missing = ftcli("predict", "none.pt", "photos")
    assert missing.code == 4
    assert missing.faults == [
        "none.pt: there is no such file, here or in runs/*/; train first, or give the path of a checkpoint"
    ]
    shutil.copy(trained, "some.jpg")
    assert ftcli("predict", "photos/china/20.jpg", "photos").code == 4


def test_the_preprocessing_is_that_of_the_checkpoint(ftcli: Ftcli, trained: Path) -> None:
    checkpoint = read_checkpoint(trained)
    other = replace(checkpoint.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="pad")
    write_checkpoint(replace(checkpoint, preprocessing=other), Path("other.pt"))
    first, second = (ftcli("predict", path, "photos", "--json").json["predictions"] for path in (trained, "other.pt"))
    assert first != second
    with Image.open("photos/china/20.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", exif=b"Exif\0\0" + _orientation(6), quality=100)
        image.save("upright.jpg", quality=100)
    turned, upright = ftcli("predict", trained, "turned.jpg", "upright.jpg", "--json").json["predictions"]
    assert {g["name"]: g["probability"] for g in turned["classes"]} == pytest.approx(
        {g["name"]: g["probability"] for g in upright["classes"]}, abs=0.02
    )


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")
