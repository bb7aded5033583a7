"""The solar cells: shared out as published, and copied as they are."""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from ftcli.data.dataset import split_images
from ftcli.datasets import download_dataset
from ftcli.errors import DataError
from ftcli.recipe.schema import Data
from ftcli.results import DownloadResult, NullReporter, Progress
from tests.datasets.conftest import RecordingReporter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DownloadResult, RecordingReporter]:
    reporter = RecordingReporter()
    return download_dataset(
        "solar-cells", tmp_path_factory.mktemp("fetched") / "data" / "solar-cells", reporter
    ), reporter


def labels() -> dict[str, tuple[float, str]]:
    package = importlib.util.find_spec("elpv_dataset")
    assert package is not None
    assert package.origin is not None
    with (Path(package.origin).parent / "data/labels.csv").open() as file:
        rows = csv.reader(file, delimiter=" ", skipinitialspace=True)
        return {Path(path).name: (float(probability), kind) for path, probability, kind in rows}


def cells(root: Path) -> dict[str, tuple[str, str]]:
    return {path.name: (path.parts[-3], path.parts[-2]) for path in root.rglob("*.png")}


@pytest.mark.slow
def test_solar_cells_published_splits(made: tuple[DownloadResult, RecordingReporter]) -> None:
    fetched, reporter = made
    assert (fetched.name, fetched.images) == ("solar-cells", 2624)
    assert fetched.splits == {
        "test": {"defective": 205, "functional": 451},
        "train": {"defective": 616, "functional": 1352},
    }
    assert len(cells(fetched.root)) == 2624
    assert reporter.reported[-1] == Progress("fetch solar-cells", 2624, 2624)
    assert [entry.name for entry in fetched.root.parent.iterdir()] == ["solar-cells"]


@pytest.mark.slow
def test_solar_cells_match_labels(made: tuple[DownloadResult, RecordingReporter]) -> None:
    found = cells(made[0].root)
    known = labels()
    assert found.keys() == known.keys()
    for name, (probability, _) in known.items():
        assert found[name][1] == ("defective" if probability > 0.5 else "functional")
    groups = Counter(known.values())
    tested = Counter(known[name] for name, (split, _) in found.items() if split == "test")
    assert len(groups) == 8
    assert all(abs(tested[group] - count / 4) < 1 for group, count in groups.items())


@pytest.mark.slow
def test_solar_cells_files_unchanged(made: tuple[DownloadResult, RecordingReporter]) -> None:
    package = importlib.util.find_spec("elpv_dataset")
    assert package is not None
    assert package.origin is not None
    for path in sorted(made[0].root.rglob("*.png"))[::100]:
        assert path.read_bytes() == (Path(package.origin).parent / "data/images" / path.name).read_bytes()


@pytest.mark.slow
def test_solar_cells_citation(made: tuple[DownloadResult, RecordingReporter]) -> None:
    text = (made[0].root / "SOURCE.txt").read_text()
    for part in ("Deitsch", "Solar Energy", "2019", "CC BY-NC-SA 4.0", "elpv-dataset"):
        assert part in text


@pytest.mark.slow
def test_solar_cells_usable_in_recipe(made: tuple[DownloadResult, RecordingReporter]) -> None:
    images = split_images(Data(root=str(made[0].root)), 0, "here")
    assert images.classes == ("defective", "functional")
    assert len(images.splits["test"]) == 656
    assert len(images.splits["train"]) + len(images.splits["val"]) == 1968


def test_solar_cells_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "elpv_dataset", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(DataError) as error:
        download_dataset("solar-cells", tmp_path / "solar", NullReporter())
    assert str(error.value) == "download: solar-cells needs the package elpv-dataset; pip install 'ftcli[demo]'"
    assert not list(tmp_path.iterdir())


def test_solar_cells_package_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages/elpv_dataset"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data/labels.csv").write_text("images/cell0001.png 1.0 mono\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    with pytest.raises(DataError) as error:
        download_dataset("solar-cells", tmp_path / "solar", NullReporter())
    assert str(error.value) == (
        f"download: the package elpv-dataset lacks {package}/data/images/cell0001.png; "
        "pip install --force-reinstall elpv-dataset"
    )
    assert not (tmp_path / "solar").exists()
