"""Words in any script: names of classes and files go through every command and every file as they are."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import SCRIPTS, Ftcli

pytestmark = pytest.mark.slow


@pytest.fixture
def place(many_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, whose own name is in two scripts, with a finished run."""
    folder = tmp_path / "多 قطة"
    shutil.copytree(many_scripts, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_leaves_them_as_they_are(place: Path, ftcli: Ftcli) -> None:
    manifest = json.loads((place / "runs/photos/run.json").read_text(encoding="utf-8"))
    assert set(manifest["data"]["classes"]) == set(SCRIPTS)
    assert all((place / "data" / path).is_file() for paths in manifest["data"]["splits"].values() for path in paths)
    told = ftcli("evaluate", "best_loss.pt", "--json").json
    assert [row["name"] for row in told["per_class"]] == sorted(SCRIPTS)
    assert all((place / "data" / mistake["path"]).is_file() for mistake in told["worst"])
    assert ftcli("inspect", "best_loss.pt", "--json").json["classes"] == sorted(SCRIPTS)


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_predictions_name_them(place: Path, ftcli: Ftcli, form: str) -> None:
    outcome = ftcli("predict", "best_loss.pt", "data/test", "--format", form, "--top", "5")
    assert outcome.code == 0
    assert all(name in outcome.out for name in SCRIPTS if form == "table")
    if form == "table":
        return
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(outcome.out)))
        told = {row["path"]: {row[f"class_{place}"] for place in range(1, 6)} for row in rows}
    else:
        told = {row["path"]: {one["name"] for one in row["classes"]} for row in outcome.json["predictions"]}
    assert len(told) == 20
    assert all(Path(path).is_file() for path in told)
    assert all(names == set(SCRIPTS) for names in told.values())


def test_a_recipe_and_a_manifest_carry_them(place: Path, ftcli: Ftcli) -> None:
    images = sorted((place / "data/train").rglob("*.jpg"))
    rows = [(path.relative_to(place / "data").as_posix(), path.parent.name) for path in images]
    with (place / "data/清单.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    drafted = ftcli("init", "data/清单.csv", "--backbone", "shufflenet_v2_x0_5", "--out", "配方.yaml")
    assert drafted.code == 0, drafted.err
    small = [f"--set={setting}" for setting in ("data.num_workers=0", "backbone.weights=none", "stages.head.epochs=1")]
    trained = ftcli("train", "配方.yaml", *small, "--stage", "head", "--out", "runs/清单", "--json")
    assert trained.code == 0, trained.err
    assert ftcli("inspect", trained.json["best_loss"], "--json").json["classes"] == sorted(SCRIPTS)


def test_a_picture_says_which_it_could_not_draw(place: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("inspect", "r.yaml", "--plot-augment", "图.png")
    assert outcome.code == 0, outcome.err
    assert (place / "图.png").read_bytes().startswith(b"\x89PNG")
    assert "🐶" in outcome.err  # no font that is drawn with has it; its name stands in the picture
    assert "names or codes are drawn instead" in outcome.err
