"""`ftcli evaluate`: figures that scikit-learn gives too, and classes that are matched by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Ftcli


@pytest.fixture
def trained(finished: Path) -> Path:
    return finished / "runs/photos/best_loss.pt"


def test_the_figures_agree_with_the_training_and_with_one_another(ftcli: Ftcli, trained: Path) -> None:
    run = ftcli("train", "--resume", trained.parent / "last.pt", "--json").json
    told = ftcli("evaluate", trained, "--json").json
    assert {"checkpoint", "split", "images", "loss", "accuracy", "per_class", "confusion", "classes"} <= set(told)
    assert {"calibration", "worst"} <= set(told)
    assert told["split"] == "test"
    assert {key: told[key] for key in ("loss", "accuracy", "images")} == run["test"]
    confusion = told["confusion"]
    assert sum(map(sum, confusion)) == told["images"] == 12
    assert sum(confusion[i][i] for i in range(2)) / 12 == told["accuracy"]
    assert told["classes"] == ["china", "flower"]
    for index, row in enumerate(told["per_class"]):
        assert row["images"] == sum(confusion[index])
        assert row["recall"] == confusion[index][index] / row["images"]
    assert len(told["worst"]) == 12 - sum(confusion[i][i] for i in range(2))


def test_validation_is_measured_on_the_images_of_the_training(ftcli: Ftcli, trained: Path) -> None:
    stages = ftcli("train", "--resume", trained.parent / "last.pt", "--json").json["stages"]
    told = ftcli("evaluate", trained, "--split", "val", "--json").json
    assert told["loss"] == min(stage["val_loss"] for stage in stages)
    assert ftcli("evaluate", trained, "--split", "train", "--json").json["images"] == 30


def test_another_folder_is_matched_by_name(workplace: Path, ftcli: Ftcli, trained: Path, photo_folder: Path) -> None:
    own = ftcli("evaluate", trained, "--json").json
    # Only one class, which stands first here and second in the checkpoint.
    shutil.copytree(photo_folder / "test/flower", workplace / "field/flower")
    told = ftcli("evaluate", trained, "--data", "field", "--json").json
    assert told["split"] == "all"
    assert told["confusion"] == [[0, 0], own["confusion"][1]]


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


def test_people_get_tables(ftcli: Ftcli, trained: Path) -> None:
    out = ftcli("evaluate", trained).out
    assert out.startswith(f"{trained} on test:\naccuracy ")
    assert "class   images  precision  recall     F1" in out
