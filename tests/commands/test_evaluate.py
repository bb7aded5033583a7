"""Tests of `ftcli evaluate`."""

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

from ftcli.evaluation.eval_setup import EvaluateArgs, evaluate_checkpoint
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.results import NullReporter
from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli


@pytest.fixture
def checkpoint_path(work_dir_with_run: Path) -> Path:
    return work_dir_with_run / "runs/photos/best_loss.pt"


@pytest.fixture
def unicode_checkpoint(unicode_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of five classes with names in many scripts, in a separate folder."""
    shutil.copytree(unicode_run, tmp_path / "scripts")
    monkeypatch.chdir(tmp_path / "scripts")
    return Path("runs/photos/best_loss.pt")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV or Parquet file of predictions."""
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


def test_evaluate_metrics_agree_with_training(ftcli: Ftcli, checkpoint_path: Path) -> None:
    run = ftcli("train", "--resume", checkpoint_path.parent / "last.pt", "--json").json
    result = ftcli("evaluate", checkpoint_path, "--json").json
    assert {"checkpoint", "split", "images", "loss", "accuracy", "per_class", "confusion", "classes"} <= set(result)
    assert {"calibration", "worst", "skipped"} <= set(result)
    assert result["split"] == "test"
    assert (result["accuracy"], result["images"]) == (run["test"]["accuracy"], run["test"]["images"])
    assert result["loss"] == pytest.approx(run["test"]["loss"], rel=1e-5)  # feature extraction uses other batches
    confusion = result["confusion"]
    assert sum(map(sum, confusion)) == result["images"] == 12
    assert sum(confusion[i][i] for i in range(2)) / 12 == result["accuracy"]
    assert result["classes"] == ["china", "flower"]
    for index, row in enumerate(result["per_class"]):
        assert row["images"] == sum(confusion[index])
        assert row["recall"] == confusion[index][index] / row["images"]
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]
    num_correct = sum(confusion[i][i] for i in range(2))
    assert (len(result["worst"]), len(result["unsure"])) == (12 - num_correct, num_correct)
    metrics = {metric["name"]: metric for metric in result["figures"]}
    assert metrics["accuracy"]["value"] == result["accuracy"]
    assert metrics["log_loss"]["value"] == result["loss"]
    error = result["calibration"]["expected_calibration_error"]
    assert metrics["expected_calibration_error"]["value"] == error


def test_evaluate_val_uses_training_split(ftcli: Ftcli, checkpoint_path: Path) -> None:
    stages = ftcli("train", "--resume", checkpoint_path.parent / "last.pt", "--json").json["stages"]
    result = ftcli("evaluate", checkpoint_path, "--split", "val", "--json").json
    assert result["loss"] == pytest.approx(min(stage["val_loss"] for stage in stages), rel=1e-5)
    assert ftcli("evaluate", checkpoint_path, "--split", "train", "--json").json["images"] == 30


def test_evaluate_warns_of_added_and_missing_images(ftcli: Ftcli, unicode_checkpoint: Path) -> None:
    test = Path("data/test")
    first = min(path for path in test.rglob("*") if path.is_file())
    first.rename(first.with_name("new.jpg"))
    outcome = ftcli("evaluate", unicode_checkpoint, "--json")
    assert outcome.err == (
        f"warning: {unicode_checkpoint}: test has other images than in training: "
        f"1 image missing, such as {first.relative_to('data')}; "
        f"1 image added, such as {first.with_name('new.jpg').relative_to('data')}\n"
    )
    assert outcome.json["images"] == 20
    shutil.rmtree(test)
    outcome = ftcli("evaluate", unicode_checkpoint)
    assert (outcome.code, outcome.errors) == (
        3,
        [
            f"{unicode_checkpoint}: data no longer has the split test (20 images in training); restore it, or give "
            "--split train or val"
        ],
    )
    assert ftcli("evaluate", unicode_checkpoint, "--split", "val").code == 0


def test_evaluate_matches_classes_of_other_folder_by_name(
    work_dir: Path, ftcli: Ftcli, checkpoint_path: Path, photo_folder: Path
) -> None:
    own_result = ftcli("evaluate", checkpoint_path, "--json").json
    # The only class has index 0 here and index 1 in the checkpoint.
    shutil.copytree(photo_folder / "test/flower", work_dir / "field/flower")
    outcome = ftcli("evaluate", checkpoint_path, "--data", "field", "--min-recall", "0.9", "--json")
    assert outcome.err == (
        "warning: --min-recall: has no effect, since all images are of one class; add images of the other\n"
    )
    result = outcome.json
    assert result["split"] == "all"
    assert result["confusion"] == [[0, 0], own_result["confusion"][1]]
    assert result["per_class"][0]["recall_low"] is None
    assert {metric["name"] for metric in result["figures"] if metric["value"] is None} == {
        "roc_auc",
        "average_precision",
    }
    assert result["thresholds"] == []


def test_evaluate_refuses_folder_with_unknown_class(
    work_dir: Path, ftcli: Ftcli, checkpoint_path: Path, photo_folder: Path
) -> None:
    shutil.copytree(photo_folder / "test/flower", work_dir / "field/tulip")
    outcome = ftcli("evaluate", checkpoint_path, "--data", "field")
    assert outcome.code == 4
    (message,) = outcome.errors
    assert message.startswith("--data: field has the class 'tulip', unknown to the checkpoint; ")


def test_evaluate_reports_unknown_split(ftcli: Ftcli, checkpoint_path: Path) -> None:
    outcome = ftcli("evaluate", checkpoint_path, "--split", "tset")
    assert outcome.code == 3
    (message,) = outcome.errors
    assert message.startswith("--split: unknown split 'tset' of ")
    assert message.endswith("; did you mean 'test'?")
    outcome = ftcli("evaluate", checkpoint_path, "--split", "")
    assert outcome.code == 3
    assert outcome.errors[0].startswith("--split: unknown split '' of ")
    assert outcome.errors[0].endswith("; known: test, train, val")


def test_evaluate_chooses_thresholds_on_val(ftcli: Ftcli, checkpoint_path: Path, photo_folder: Path) -> None:
    outcome = ftcli("evaluate", checkpoint_path, "--min-recall", "0.9", "--json")
    assert outcome.err == "Evaluating the 10 images of val too, to choose thresholds on them\n"
    result = outcome.json["thresholds"]
    assert [(item["positive"], item["goal"], item["wanted"], item["chosen_on"]) for item in result] == [
        (name, goal, wanted, "val") for name in ("china", "flower") for goal, wanted in (("f1", None), ("recall", 0.9))
    ]
    outcome = ftcli("evaluate", checkpoint_path, "--split", "val", "--predictions", "val.csv")
    assert outcome.err == ""  # val is evaluated once
    out = outcome.out
    assert "thresholds, chosen on val and measured on val:" in out
    assert "They are measured on the images that they were chosen on; expect worse on other images." in out
    val = read_predictions(Path("val.csv"))
    for item in result:
        column = f"p_{item['positive']}"
        assert item["threshold"] in {row[column] for row in val}
        predicted_positive = [row[column] >= item["threshold"] for row in val if row["label"] == item["positive"]]
        assert item["goal"] == "f1" or sum(predicted_positive) / len(predicted_positive) >= 0.9
    other = ftcli("evaluate", checkpoint_path, "--data", photo_folder, "--split", "test", "--json").json["thresholds"]
    assert {item["chosen_on"] for item in other} == {"test"}


def test_evaluate_calibrate_writes_usable_checkpoint(ftcli: Ftcli, checkpoint_path: Path) -> None:
    before = checkpoint_path.read_bytes()
    _, old = evaluate_checkpoint(EvaluateArgs(checkpoint=checkpoint_path, split="val", device="cpu"), NullReporter())
    outcome = ftcli("evaluate", checkpoint_path, "--calibrate", "--json")
    assert outcome.err.startswith(
        f"warning: --calibrate: {checkpoint_path} has only 10 images in val, so the temperature is uncertain; "
        "use at least 100\n"
    )
    result = outcome.json
    new = checkpoint_path.with_name("best_loss-calibrated.pt")
    temperature_scaling = result["scaling"]
    assert result["checkpoint"] == temperature_scaling["checkpoint"] == str(new)
    assert (temperature_scaling["split"], temperature_scaling["images"]) == ("val", 10)
    assert temperature_scaling["log_loss_after"] < temperature_scaling["log_loss_before"]
    assert checkpoint_path.read_bytes() == before
    calibrated_checkpoint, source = read_checkpoint(new), read_checkpoint(checkpoint_path)
    _, calibrated = evaluate_checkpoint(EvaluateArgs(checkpoint=new, split="val", device="cpu"), NullReporter())
    assert torch.allclose(calibrated.logits * temperature_scaling["temperature"], old.logits, rtol=1e-4, atol=1e-6)
    assert torch.equal(calibrated.predicted, old.predicted)
    assert (
        calibrated_checkpoint.kind,
        calibrated_checkpoint.progress,
        calibrated_checkpoint.stage,
        calibrated_checkpoint.splits,
    ) == ("best", None, source.stage, source.splits)
    assert calibrated_checkpoint.origin == {
        **source.origin,
        "temperature": temperature_scaling["temperature"],
        "calibrated_from": source.digest,
    }
    assert calibrated_checkpoint.metrics == {
        "val_loss": compute_loss(calibrated),
        "val_accuracy": compute_accuracy(calibrated),
    }
    assert calibrated_checkpoint.metrics["val_loss"] == temperature_scaling["log_loss_after"]
    again = ftcli("evaluate", new, "--json").json
    assert {key: again[key] for key in again if key != "scaling"} == {
        key: result[key] for key in result if key != "scaling"
    }
    run = ftcli("train", "--resume", new, "--stage", "all", "--set", "stages.all.epochs=1", "--json").json
    assert run["stages"][0]["start_val_loss"] == pytest.approx(calibrated_checkpoint.metrics["val_loss"], rel=1e-5)


def test_evaluate_calibrates_on_val_of_recipe(ftcli: Ftcli, checkpoint_path: Path, photo_folder: Path) -> None:
    last = checkpoint_path.parent / "last.pt"
    result = ftcli("evaluate", last, "--data", photo_folder, "--calibrate", "--out", "here.pt", "--json").json
    _, val = evaluate_checkpoint(EvaluateArgs(checkpoint=last, split="val", device="cpu"), NullReporter())
    assert (result["split"], result["images"]) == ("test", 12)
    assert result["scaling"]["log_loss_before"] == compute_loss(val)
    assert result["scaling"]["checkpoint"] == result["checkpoint"] == str(Path("here.pt").absolute())
    assert (read_checkpoint(last).kind, read_checkpoint(Path("here.pt")).kind) == ("last", "best")
    assert read_checkpoint(Path("here.pt")).progress is None


def test_evaluate_calibrate_requires_val_of_recipe(ftcli: Ftcli, unicode_checkpoint: Path) -> None:
    Path("data").rename("moved")
    outcome = ftcli("evaluate", unicode_checkpoint, "--data", "moved", "--calibrate")
    assert outcome.code == 3
    assert outcome.errors == [
        f"{unicode_checkpoint}: data.root: data does not exist; "
        "give a folder with train/<class>/, or with one folder a class"
    ]
    assert not Path("runs/photos/best_loss-calibrated.pt").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_evaluate_predictions_reproduce_metrics(ftcli: Ftcli, unicode_checkpoint: Path, suffix: str) -> None:
    result = ftcli("evaluate", unicode_checkpoint, "--predictions", f"table.{suffix}", "--json").json
    assert result["predictions"] == str(Path(f"table.{suffix}").absolute())
    rows, classes = read_predictions(Path(f"table.{suffix}")), result["classes"]
    columns = [f"p_{name}" for name in classes]
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "correct", *columns]
    assert len(rows) == result["images"] == 20
    assert sum(row["correct"] for row in rows) / 20 == result["accuracy"]
    for row in rows:
        probabilities = [row[column] for column in columns]
        assert (Path("data") / row["path"]).is_file()
        assert sum(probabilities) == pytest.approx(1)
        assert row["probability"] == max(probabilities)
        assert row["predicted"] == classes[probabilities.index(max(probabilities))]
        assert row["correct"] == (row["label"] == row["predicted"])
    for name, is_correct in (("worst", False), ("unsure", True)):
        chosen = [row for row in rows if row["correct"] == is_correct]
        chosen.sort(key=lambda row: (row["probability"] if row["correct"] else -row["probability"], row["path"]))
        keys = ("path", "label", "predicted", "probability")
        assert result[name] == [{key: row[key] for key in keys} for row in chosen[:10]]
    assert result["worst"]
    pairs = Counter((row["label"], row["predicted"]) for row in rows if not row["correct"])
    assert {(item["label"], item["predicted"]): item["images"] for item in result["confused"]} == pairs
    assert [item["images"] for item in result["confused"]] == sorted(pairs.values(), reverse=True)
    assert all(item["share"] == item["images"] / 4 for item in result["confused"])
    assert (result["thresholds"], result["views"]) == ([], 1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_evaluate_keeps_old_predictions_on_full_disk(
    ftcli: Ftcli, checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    target = Path(f"table.{suffix}")
    target.write_text("old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ftcli.files.os.fsync", fail)
    outcome = ftcli("evaluate", checkpoint_path, "--predictions", target)
    assert outcome.code == 1
    assert outcome.errors[0].startswith(f"table.{suffix}: the disk is full: ")
    assert target.read_text() == "old"
    assert not [path for path in Path().iterdir() if path.name.endswith(".tmp")]


def test_evaluate_reports_all_invalid_options(ftcli: Ftcli, checkpoint_path: Path) -> None:
    before = sorted(Path().rglob("*"))
    many = ("--min-recall", "1.5", "--tta", "flip", "--out", "x.bin", "--predictions", "table.txt", "--report", "r.pdf")
    run = "runs/photos"
    for arguments, sentences in (
        (
            many,
            [
                "--min-recall: 1.5 is not above 0 and at most 1; give a recall such as 0.95",
                "--tta: unknown views 'flip'; did you mean 'flips'?",
                "--out: x.bin has no effect without --calibrate; add it, or omit --out",
                "--out: x.bin does not end in .pt; give a path that does",
                "--predictions: table.txt does not end in .csv or .parquet; give a path that does",
                "--report: r.pdf does not end in .html or .htm; give a path that does",
            ],
        ),
        (("--min-recall", "0"), ["--min-recall: 0 is not above 0 and at most 1; give a recall such as 0.95"]),
        (("--min-recall", "nan"), ["--min-recall: nan is not above 0 and at most 1; give a recall such as 0.95"]),
        (
            ("--predictions", "nowhere/table.csv"),
            ["--predictions: the folder nowhere does not exist; create it, or give another path"],
        ),
        (
            ("--calibrate", "--out", f"{run}/../photos/best_loss.pt"),
            [
                f"--out: {run}/../photos/best_loss.pt is a checkpoint from which its run resumes; give another path",
            ],
        ),
        (
            ("--calibrate", "--out", f"{run}/stages/head.pt"),
            [f"--out: {run}/stages/head.pt is a checkpoint from which its run resumes; give another path"],
        ),
    ):
        outcome = ftcli("evaluate", checkpoint_path, *arguments)
        assert (outcome.code, outcome.errors) == (2, sentences)
    assert sorted(Path().rglob("*")) == before


def test_evaluate_never_overwrites_checkpoint(ftcli: Ftcli, checkpoint_path: Path, tmp_path: Path) -> None:
    own_checkpoint, other = tmp_path / "own.pt", tmp_path / "other.pt"
    shutil.copy(checkpoint_path, own_checkpoint)
    content = own_checkpoint.read_bytes()
    (tmp_path / "link.pt").symlink_to(own_checkpoint)
    other.hardlink_to(own_checkpoint)
    for checkpoint, target in ((tmp_path / "link.pt", own_checkpoint), (own_checkpoint, other)):
        outcome = ftcli("evaluate", checkpoint, "--calibrate", "--out", target)
        assert outcome.code == 2
        assert outcome.errors == [
            f"--out: {target} is the evaluated checkpoint, which is never overwritten; give another path"
        ]
    outcome = ftcli("evaluate", own_checkpoint, "--calibrate", "--out", tmp_path / "link.pt")
    assert outcome.errors[0].startswith(f"--out: {tmp_path}/link.pt is a folder, link or device; ")
    assert own_checkpoint.read_bytes() == content


def test_evaluate_refuses_same_path_for_two_outputs(ftcli: Ftcli, checkpoint_path: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("old")
    (tmp_path / "table.html").hardlink_to(tmp_path / "table.csv")
    outcome = ftcli("evaluate", checkpoint_path, "--predictions", "table.csv", "--report", "table.html")
    assert (outcome.code, outcome.errors) == (
        2,
        ["--report: table.html is also the file of --predictions; give two paths"],
    )
    assert (tmp_path / "table.csv").read_text() == "old"


def test_evaluate_min_recall_requires_two_classes(ftcli: Ftcli, unicode_checkpoint: Path) -> None:
    outcome = ftcli("evaluate", unicode_checkpoint, "--min-recall", "0.95")
    assert outcome.code == 2
    assert outcome.errors == [
        f"--min-recall: 0.95 needs a checkpoint with two classes, but {unicode_checkpoint} has 5; omit it"
    ]


def test_evaluate_parquet_requires_pyarrow(
    ftcli: Ftcli, checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outcome = ftcli("evaluate", checkpoint_path, "--predictions", "table.parquet")
    assert (outcome.code, outcome.errors) == (
        2,
        [
            "--predictions: table.parquet needs the package pyarrow; run pip install '.[parquet]' in the ftcli "
            "repository"
        ],
    )


def test_evaluate_report_includes_training_curves(ftcli: Ftcli, checkpoint_path: Path) -> None:
    result = ftcli("evaluate", checkpoint_path, "--report", "table.html", "--json").json
    assert result["report"] == str(Path("table.html").absolute())
    report = Path("table.html").read_text()
    assert "shufflenet_v2_x0_5" in report
    shutil.copy(checkpoint_path, "taken.pt")
    ftcli("evaluate", "taken.pt", "--report", "taken.html")
    assert len(Path("taken.html").read_text()) < len(report) - 1000  # without the training curves
    with (checkpoint_path.parent / "metrics.jsonl").open("a") as file:
        file.write("[]\n")
    outcome = ftcli("evaluate", checkpoint_path, "--report", "damaged.html")
    line = (checkpoint_path.parent / "metrics.jsonl").read_text().count("\n")
    assert (outcome.code, outcome.err.splitlines()[0]) == (
        0,
        f"warning: --report: omits the training curves: {checkpoint_path.parent}/metrics.jsonl:{line}: was "
        "not written by ftcli train (it does not contain a mapping); restore the file",
    )
    assert 'id="training"' in report
    assert 'id="training"' not in Path("damaged.html").read_text()


def test_evaluate_prints_tables(ftcli: Ftcli, checkpoint_path: Path) -> None:
    out = ftcli("evaluate", checkpoint_path, "--calibrate", "--tta", "flips").out
    new = checkpoint_path.with_name("best_loss-calibrated.pt")
    assert out.startswith(f"{new} on test:\naccuracy ")
    assert ", 12 images, averaged over 4 views of each image\n" in out
    assert "class   support  precision  recall     F1  95% interval of recall  ROC AUC  average precision" in out
    for title in (
        "metric ",
        "confusion matrix (rows",
        "most frequent errors:",
        "errors with the highest confidence:",
        "correct images with the lowest confidence:",
    ):
        assert f"\n{title}" in out
    assert "thresholds, chosen on val and measured on test:" in out
    assert "\nTemperature " in out
    assert out.endswith(f"next: ftcli evaluate {new} --report report.html\n")
