"""Tests of class and file names in many scripts, in all commands."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import UNICODE_CLASS_NAMES, Ftcli

pytestmark = pytest.mark.slow


@pytest.fixture
def unicode_dir(unicode_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a name in two scripts and a finished run."""
    folder = tmp_path / "多 قطة"
    shutil.copytree(unicode_run, folder)
    monkeypatch.chdir(folder)
    return folder


def test_train_preserves_unicode_names(unicode_dir: Path, ftcli: Ftcli) -> None:
    metadata = json.loads((unicode_dir / "runs/photos/run.json").read_text(encoding="utf-8"))
    assert set(metadata["data"]["classes"]) == set(UNICODE_CLASS_NAMES)
    assert all(
        (unicode_dir / "data" / path).is_file() for paths in metadata["data"]["splits"].values() for path in paths
    )
    result = ftcli("evaluate", "best_loss.pt", "--json").json
    assert [row["name"] for row in result["per_class"]] == sorted(UNICODE_CLASS_NAMES)
    assert all((unicode_dir / "data" / error["path"]).is_file() for error in result["worst"])
    assert ftcli("inspect", "best_loss.pt", "--json").json["classes"] == sorted(UNICODE_CLASS_NAMES)


@pytest.mark.parametrize("output_format", ["csv", "json", "table"])
def test_predict_prints_unicode_names(unicode_dir: Path, ftcli: Ftcli, output_format: str) -> None:
    outcome = ftcli("predict", "best_loss.pt", "data/test", "--format", output_format, "--top", "5")
    assert outcome.code == 0
    assert all(name in outcome.out for name in UNICODE_CLASS_NAMES if output_format == "table")
    if output_format == "table":
        return
    if output_format == "csv":
        rows = list(csv.DictReader(io.StringIO(outcome.out)))
        result = {row["path"]: {row[f"class_{number}"] for number in range(1, 6)} for row in rows}
    else:
        result = {row["path"]: {score["name"] for score in row["classes"]} for row in outcome.json["predictions"]}
    assert len(result) == 20
    assert all(Path(path).is_file() for path in result)
    assert all(names == set(UNICODE_CLASS_NAMES) for names in result.values())


def test_init_and_manifest_accept_unicode_names(unicode_dir: Path, ftcli: Ftcli) -> None:
    images = sorted((unicode_dir / "data/train").rglob("*.jpg"))
    rows = [(path.relative_to(unicode_dir / "data").as_posix(), path.parent.name) for path in images]
    with (unicode_dir / "data/清单.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    initialized = ftcli("init", "data/清单.csv", "--backbone", "shufflenet_v2_x0_5", "--out", "配方.yaml")
    assert initialized.code == 0, initialized.err
    small = [f"--set={setting}" for setting in ("data.num_workers=0", "backbone.weights=none", "stages.head.epochs=1")]
    trained = ftcli("train", "配方.yaml", *small, "--stage", "head", "--out", "runs/清单", "--json")
    assert trained.code == 0, trained.err
    assert ftcli("inspect", trained.json["best_loss"], "--json").json["classes"] == sorted(UNICODE_CLASS_NAMES)


def test_inspect_plot_warns_of_missing_glyphs(unicode_dir: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("inspect", "r.yaml", "--plot-augment", "图.png")
    assert outcome.code == 0, outcome.err
    assert (unicode_dir / "图.png").read_bytes().startswith(b"\x89PNG")
    assert "🐶" in outcome.err  # no installed font has it; its name is drawn instead
    assert "drawn as names or codes" in outcome.err
