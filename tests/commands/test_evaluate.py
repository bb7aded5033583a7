"""`ftcli evaluate`: figures that scikit-learn gives too, and classes that are matched by name."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.parquet import read_table

from ftcli.analysis.evaluation.measurement import Question, measure
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.results import Silent
from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli


@pytest.fixture
def trained(finished: Path) -> Path:
    return finished / "runs/photos/best_loss.pt"


@pytest.fixture
def scripts(many_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of five classes, whose names are in many scripts, in a folder of its own."""
    shutil.copytree(many_scripts, tmp_path / "scripts")
    monkeypatch.chdir(tmp_path / "scripts")
    return Path("runs/photos/best_loss.pt")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of predictions, in one form for both kinds."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = read_table(path).to_pylist()
        return rows
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                name: float(cell) if name.startswith(("p_", "prob")) else cell == "true" if name == "correct" else cell
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


def test_the_figures_agree_with_the_training_and_with_one_another(ftcli: Ftcli, trained: Path) -> None:
    run = ftcli("train", "--resume", trained.parent / "last.pt", "--json").json
    told = ftcli("evaluate", trained, "--json").json
    assert {"checkpoint", "split", "images", "loss", "accuracy", "per_class", "confusion", "classes"} <= set(told)
    assert {"calibration", "worst", "skipped"} <= set(told)
    assert told["split"] == "test"
    assert (told["accuracy"], told["images"]) == (run["test"]["accuracy"], run["test"]["images"])
    assert told["loss"] == pytest.approx(run["test"]["loss"], rel=1e-5)  # the frozen part is computed in other batches
    confusion = told["confusion"]
    assert sum(map(sum, confusion)) == told["images"] == 12
    assert sum(confusion[i][i] for i in range(2)) / 12 == told["accuracy"]
    assert told["classes"] == ["china", "flower"]
    for index, row in enumerate(told["per_class"]):
        assert row["images"] == sum(confusion[index])
        assert row["recall"] == confusion[index][index] / row["images"]
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]
    right = sum(confusion[i][i] for i in range(2))
    assert (len(told["worst"]), len(told["unsure"])) == (12 - right, right)
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert figures["accuracy"]["value"] == told["accuracy"]
    assert figures["log_loss"]["value"] == told["loss"]
    error = told["calibration"]["expected_calibration_error"]
    assert figures["expected_calibration_error"]["value"] == error


def test_validation_is_measured_on_the_images_of_the_training(ftcli: Ftcli, trained: Path) -> None:
    stages = ftcli("train", "--resume", trained.parent / "last.pt", "--json").json["stages"]
    told = ftcli("evaluate", trained, "--split", "val", "--json").json
    assert told["loss"] == pytest.approx(min(stage["val_loss"] for stage in stages), rel=1e-5)
    assert ftcli("evaluate", trained, "--split", "train", "--json").json["images"] == 30


def test_images_that_came_or_went_since_training_are_told(ftcli: Ftcli, scripts: Path) -> None:
    test = Path("data/test")
    first = min(path for path in test.rglob("*") if path.is_file())
    first.rename(first.with_name("new.jpg"))
    outcome = ftcli("evaluate", scripts, "--json")
    assert outcome.err == (
        f"warning: {scripts}: test is not as it was in training: 1 image missing, such as {first.relative_to('data')}; "
        f"1 image added, such as {first.with_name('new.jpg').relative_to('data')}\n"
    )
    assert outcome.json["images"] == 20
    shutil.rmtree(test)
    outcome = ftcli("evaluate", scripts)
    assert (outcome.code, outcome.faults) == (
        3,
        [
            f"{scripts}: data has no test any more, of which training knew 20 images; put them back, or give --split "
            "train or val"
        ],
    )
    assert ftcli("evaluate", scripts, "--split", "val").code == 0


def test_another_folder_is_matched_by_name(workplace: Path, ftcli: Ftcli, trained: Path, photo_folder: Path) -> None:
    own = ftcli("evaluate", trained, "--json").json
    # Only one class, which stands first here and second in the checkpoint.
    shutil.copytree(photo_folder / "test/flower", workplace / "field/flower")
    outcome = ftcli("evaluate", trained, "--data", "field", "--min-recall", "0.9", "--json")
    assert outcome.err == (
        "warning: --min-recall: all images are of one class, so there is no threshold between two to choose\n"
    )
    told = outcome.json
    assert told["split"] == "all"
    assert told["confusion"] == [[0, 0], own["confusion"][1]]
    assert told["per_class"][0]["recall_low"] is None
    assert {figure["name"] for figure in told["figures"] if figure["value"] is None} == {"roc_auc", "average_precision"}
    assert told["thresholds"] == []


def test_a_folder_of_other_classes_is_refused(workplace: Path, ftcli: Ftcli, trained: Path, photo_folder: Path) -> None:
    shutil.copytree(photo_folder / "test/flower", workplace / "field/tulip")
    outcome = ftcli("evaluate", trained, "--data", "field")
    assert outcome.code == 4
    (told,) = outcome.faults
    assert told.startswith("--data: field has the class 'tulip' that the checkpoint does not know; ")


def test_a_split_that_is_not_there(ftcli: Ftcli, trained: Path) -> None:
    outcome = ftcli("evaluate", trained, "--split", "tset")
    assert outcome.code == 3
    (told,) = outcome.faults
    assert told.endswith("has no such split; did you mean 'test'?")
    outcome = ftcli("evaluate", trained, "--split", "")
    assert outcome.code == 3
    assert outcome.faults[0].endswith(" has no such split; known: test, train, val")
    assert outcome.faults[0].startswith("--split '': ")


def test_thresholds_are_chosen_on_val_where_that_is_not_measured(
    ftcli: Ftcli, trained: Path, photo_folder: Path
) -> None:
    outcome = ftcli("evaluate", trained, "--min-recall", "0.9", "--json")
    assert outcome.err == "Thresholds are chosen on val, so its 10 images are measured too\n"
    told = outcome.json["thresholds"]
    assert [(one["positive"], one["goal"], one["wanted"], one["chosen_on"]) for one in told] == [
        (name, goal, wanted, "val") for name in ("china", "flower") for goal, wanted in (("f1", None), ("recall", 0.9))
    ]
    outcome = ftcli("evaluate", trained, "--split", "val", "--predictions", "val.csv")
    assert outcome.err == ""  # they are measured once
    out = outcome.out
    assert "thresholds, chosen on val and measured on val:" in out
    assert "They were chosen on the very images that they are measured on, so other images will do worse." in out
    val = read_predictions(Path("val.csv"))
    for one in told:
        column = f"p_{one['positive']}"
        assert one["threshold"] in {row[column] for row in val}
        own = [row[column] >= one["threshold"] for row in val if row["label"] == one["positive"]]
        assert one["goal"] == "f1" or sum(own) / len(own) >= 0.9
    other = ftcli("evaluate", trained, "--data", photo_folder, "--split", "test", "--json").json["thresholds"]
    assert {one["chosen_on"] for one in other} == {"test"}


def test_a_calibrated_checkpoint_is_as_any_other(ftcli: Ftcli, trained: Path) -> None:
    before, old = trained.read_bytes(), measure(Question(checkpoint=trained, split="val", device="cpu"), Silent())
    outcome = ftcli("evaluate", trained, "--calibrate", "--json")
    assert outcome.err.startswith(
        f"warning: --calibrate: {trained} has 10 images of val only; a temperature from so few may be far from the "
        "best one for other images\n"
    )
    told = outcome.json
    new = trained.with_name("best_loss-calibrated.pt")
    scaling = told["scaling"]
    assert told["checkpoint"] == scaling["checkpoint"] == str(new)
    assert (scaling["split"], scaling["images"]) == ("val", 10)
    assert scaling["log_loss_after"] < scaling["log_loss_before"]
    assert trained.read_bytes() == before
    made, source = read_checkpoint(new), read_checkpoint(trained)
    own = measure(Question(checkpoint=new, split="val", device="cpu"), Silent())
    assert torch.allclose(own.outputs.logits * scaling["temperature"], old.outputs.logits, rtol=1e-4, atol=1e-6)
    assert torch.equal(own.outputs.logits.argmax(1), old.outputs.logits.argmax(1))
    assert (made.kind, made.progress, made.stage, made.held) == ("best", None, source.stage, source.held)
    assert made.origin == {**source.origin, "temperature": scaling["temperature"], "calibrated_from": source.digest}
    assert made.metrics == {"val_loss": measure_loss(own.outputs), "val_accuracy": measure_accuracy(own.outputs)}
    assert made.metrics["val_loss"] == scaling["log_loss_after"]
    again = ftcli("evaluate", new, "--json").json
    assert {key: again[key] for key in again if key != "scaling"} == {
        key: told[key] for key in told if key != "scaling"
    }
    run = ftcli("train", "--resume", new, "--stage", "all", "--set", "stages.all.epochs=1", "--json").json
    assert run["stages"][0]["start_val_loss"] == pytest.approx(made.metrics["val_loss"], rel=1e-5)


def test_calibration_takes_the_val_images_of_the_recipe(ftcli: Ftcli, trained: Path, photo_folder: Path) -> None:
    last = trained.parent / "last.pt"
    told = ftcli("evaluate", last, "--data", photo_folder, "--calibrate", "--out", "here.pt", "--json").json
    val = measure(Question(checkpoint=last, split="val", device="cpu"), Silent())
    assert (told["split"], told["images"]) == ("test", 12)
    assert told["scaling"]["log_loss_before"] == measure_loss(val.outputs)
    assert told["scaling"]["checkpoint"] == told["checkpoint"] == str(Path("here.pt").absolute())
    assert (read_checkpoint(last).kind, read_checkpoint(Path("here.pt")).kind) == ("last", "best")
    assert read_checkpoint(Path("here.pt")).progress is None


def test_calibration_needs_the_val_images_of_the_recipe(ftcli: Ftcli, scripts: Path) -> None:
    Path("data").rename("moved")
    outcome = ftcli("evaluate", scripts, "--data", "moved", "--calibrate")
    assert outcome.code == 3
    assert outcome.faults == [
        f"{scripts}: data.root: data is not there; give a folder with train/<class>/, or with one folder a class"
    ]
    assert not Path("runs/photos/best_loss-calibrated.pt").exists()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_table_of_predictions_holds_what_the_figures_are_made_of(ftcli: Ftcli, scripts: Path, ending: str) -> None:
    told = ftcli("evaluate", scripts, "--predictions", f"told.{ending}", "--json").json
    assert told["predictions"] == str(Path(f"told.{ending}").absolute())
    rows, classes = read_predictions(Path(f"told.{ending}")), told["classes"]
    columns = [f"p_{name}" for name in classes]
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "correct", *columns]
    assert len(rows) == told["images"] == 20
    assert sum(row["correct"] for row in rows) / 20 == told["accuracy"]
    for row in rows:
        shares = [row[column] for column in columns]
        assert (Path("data") / row["path"]).is_file()
        assert sum(shares) == pytest.approx(1)
        assert row["probability"] == max(shares)
        assert row["predicted"] == classes[shares.index(max(shares))]
        assert row["correct"] == (row["label"] == row["predicted"])
    for name, right in (("worst", False), ("unsure", True)):
        chosen = [row for row in rows if row["correct"] == right]
        chosen.sort(key=lambda row: (row["probability"] if row["correct"] else -row["probability"], row["path"]))
        keys = ("path", "label", "predicted", "probability")
        assert told[name] == [{key: row[key] for key in keys} for row in chosen[:10]]
    assert told["worst"]
    pairs = Counter((row["label"], row["predicted"]) for row in rows if not row["correct"])
    assert {(one["label"], one["predicted"]): one["images"] for one in told["confused"]} == pairs
    assert [one["images"] for one in told["confused"]] == sorted(pairs.values(), reverse=True)
    assert all(one["share"] == one["images"] / 4 for one in told["confused"])
    assert (told["thresholds"], told["views"]) == ([], 1)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_full_disk_leaves_the_old_table(
    ftcli: Ftcli, trained: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    target = Path(f"told.{ending}")
    target.write_text("old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ftcli.storage.os.fsync", fail)
    outcome = ftcli("evaluate", trained, "--predictions", target)
    assert outcome.code == 1
    assert outcome.faults[0].startswith(f"told.{ending}: the disk is full: ")
    assert target.read_text() == "old"
    assert not [path for path in Path().iterdir() if path.name.endswith(".tmp")]


def test_what_cannot_be_asked_for_is_told_at_once(ftcli: Ftcli, trained: Path) -> None:
    before = sorted(Path().rglob("*"))
    many = ("--min-recall", "1.5", "--tta", "flip", "--out", "x.bin", "--predictions", "told.txt", "--report", "r.pdf")
    run, there = "runs/photos", "give a place that you may write to"
    for arguments, faults in (
        (
            many,
            [
                "--min-recall: 1.5 is no share above 0 and up to 1; give one such as 0.95",
                "--tta: 'flip' names no views; did you mean 'flips'?",
                "--out: x.bin is where --calibrate puts its checkpoint; add --calibrate, or leave it out",
                "--out: x.bin does not end in .pt, as checkpoints do; give such a name",
                "--predictions: told.txt does not end in .csv or .parquet; give such a name",
                "--report: r.pdf does not end in .html or .htm; give such a name",
            ],
        ),
        (("--min-recall", "0"), ["--min-recall: 0 is no share above 0 and up to 1; give one such as 0.95"]),
        (("--min-recall", "nan"), ["--min-recall: nan is no share above 0 and up to 1; give one such as 0.95"]),
        (
            ("--predictions", "nowhere/told.csv"),
            [f"--predictions: the folder nowhere cannot be written (No such file or directory); {there}"],
        ),
        (
            ("--calibrate", "--out", f"{run}/../photos/best_loss.pt"),
            [
                f"--out: {run}/../photos/best_loss.pt is a checkpoint that its run goes on from; give another name",
            ],
        ),
        (
            ("--calibrate", "--out", f"{run}/stages/head.pt"),
            [f"--out: {run}/stages/head.pt is a checkpoint that its run goes on from; give another name"],
        ),
    ):
        outcome = ftcli("evaluate", trained, *arguments)
        assert (outcome.code, outcome.faults) == (2, faults)
    assert sorted(Path().rglob("*")) == before


def test_the_checkpoint_itself_is_never_written(ftcli: Ftcli, trained: Path, tmp_path: Path) -> None:
    own, other = tmp_path / "own.pt", tmp_path / "other.pt"
    shutil.copy(trained, own)
    content = own.read_bytes()
    (tmp_path / "link.pt").symlink_to(own)
    other.hardlink_to(own)
    for given, target in ((tmp_path / "link.pt", own), (own, other)):
        outcome = ftcli("evaluate", given, "--calibrate", "--out", target)
        assert outcome.code == 2
        assert outcome.faults == [f"--out: {target} is the checkpoint itself, which stays as it is; give another name"]
    outcome = ftcli("evaluate", own, "--calibrate", "--out", tmp_path / "link.pt")
    assert outcome.faults[0].startswith(f"--out: {tmp_path}/link.pt is a folder, link or device; ")
    assert own.read_bytes() == content


def test_two_files_at_one_place(ftcli: Ftcli, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "told.csv").write_text("old")
    (tmp_path / "told.html").hardlink_to(tmp_path / "told.csv")
    outcome = ftcli("evaluate", trained, "--predictions", "told.csv", "--report", "told.html")
    assert (outcome.code, outcome.faults) == (
        2,
        ["--report: told.html is also where --predictions writes; give each a name of its own"],
    )
    assert (tmp_path / "told.csv").read_text() == "old"


def test_a_recall_is_for_two_classes(ftcli: Ftcli, scripts: Path) -> None:
    outcome = ftcli("evaluate", scripts, "--min-recall", "0.95")
    assert outcome.code == 2
    assert outcome.faults == [
        f"--min-recall: 0.95 asks for a threshold between two classes, and {scripts} has 5; leave it out"
    ]


def test_parquet_needs_its_package(ftcli: Ftcli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outcome = ftcli("evaluate", trained, "--predictions", "told.parquet")
    assert (outcome.code, outcome.faults) == (
        2,
        ["--predictions: told.parquet needs the package pyarrow; pip install 'ftcli[parquet]'"],
    )


def test_the_report_tells_of_the_run_where_it_is_there(ftcli: Ftcli, trained: Path) -> None:
    told = ftcli("evaluate", trained, "--report", "told.html", "--json").json
    assert told["report"] == str(Path("told.html").absolute())
    beside = Path("told.html").read_text()
    assert "shufflenet_v2_x0_5" in beside
    shutil.copy(trained, "taken.pt")
    ftcli("evaluate", "taken.pt", "--report", "taken.html")
    assert len(Path("taken.html").read_text()) < len(beside) - 1000  # the curves of the training are missing
    with (trained.parent / "metrics.jsonl").open("a") as file:
        file.write("[]\n")
    outcome = ftcli("evaluate", trained, "--report", "damaged.html")
    line = (trained.parent / "metrics.jsonl").read_text().count("\n")
    assert (outcome.code, outcome.err.splitlines()[0]) == (
        0,
        f"warning: --report: the curves of the training are left out: {trained.parent}/metrics.jsonl:{line}: is no "
        "line that ftcli train wrote (it holds no mapping); put the file back as it was",
    )
    assert 'id="training"' in beside
    assert 'id="training"' not in Path("damaged.html").read_text()


def test_people_get_tables(ftcli: Ftcli, trained: Path) -> None:
    out = ftcli("evaluate", trained, "--calibrate", "--tta", "flips").out
    new = trained.with_name("best_loss-calibrated.pt")
    assert out.startswith(f"{new} on test:\naccuracy ")
    assert ", 12 images, each seen in 4 views\n" in out
    assert "class   images  precision  recall     F1    recall, 95 %  ROC AUC  average precision" in out
    for title in ("figure ", "confusion (rows", "most confused:", "most confident mistakes:", "least confident hits:"):
        assert f"\n{title}" in out
    assert "thresholds, chosen on val and measured on test:" in out
    assert "\nTemperature " in out
    assert out.endswith(f"next: ftcli evaluate {new} --report report.html\n")
