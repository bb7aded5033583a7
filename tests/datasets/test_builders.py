from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from ftcli.data.dataset import split_images
from ftcli.datasets import download_dataset
from ftcli.errors import DataError
from ftcli.recipe.schema import Data
from ftcli.results import DownloadResult, NullReporter, Progress
from tests.conftest import Ftcli
from tests.datasets.conftest import RecordingReporter, Serve, list_files, pack_idx, pack_tar, pack_zip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def download(ftcli: Ftcli, name: str, here: Path) -> dict[str, bytes]:
    outcome = ftcli("data", "download", name, "--json")
    assert outcome.code == 0, outcome.err
    files = list_files(here / "data" / name)
    assert outcome.json["images"] == len(files)
    assert [path.name for path in (here / "data").iterdir()] == [name]
    return files


def test_build_hotdog(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    members = {
        f"hotdog/{split}/{label}/{number}.png": jpegs[4 * number + 2 * i + j]
        for i, split in enumerate(("train", "test"))
        for j, label in enumerate(("hotdog", "not-hotdog"))
        for number in range(3)
    }
    serve_set("hotdog", pack_zip({"hotdog/": b"", "hotdog/train/hotdog/._0.png": b"x", **members}))
    assert download(ftcli, "hotdog", here) == {name.removeprefix("hotdog/"): image for name, image in members.items()}


def test_build_imagenette(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    members = {
        "imagenette2-320/noisy_imagenette.csv": b"path,noisy_labels_0\n",
        "imagenette2-320/train/n01440764/n01440764_10026.JPEG": jpegs[0],
        "imagenette2-320/train/n02102040/n02102040_7.JPEG": jpegs[1],
        "imagenette2-320/val/n01440764/n01440764_1.JPEG": jpegs[2],
        "imagenette2-320/val/n02102040/n02102040_2.JPEG": jpegs[3],
    }
    serve_set("imagenette", pack_tar(members))
    assert download(ftcli, "imagenette", here) == {
        "train/tench/n01440764_10026.JPEG": jpegs[0],
        "train/English springer/n02102040_7.JPEG": jpegs[1],
        "val/tench/n01440764_1.JPEG": jpegs[2],
        "val/English springer/n02102040_2.JPEG": jpegs[3],
    }


def test_build_eurosat(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    serve_set("eurosat", pack_zip({"2750/Forest/Forest_1.jpg": jpegs[0], "2750/SeaLake/SeaLake_1.jpg": jpegs[1]}))
    assert download(ftcli, "eurosat", here) == {"Forest/Forest_1.jpg": jpegs[0], "SeaLake/SeaLake_1.jpg": jpegs[1]}


def test_build_oxford_pets(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    names = ["Abyssinian_1", "american_bulldog_10", "Abyssinian_2", "american_bulldog_20"]
    lists = {
        "annotations/trainval.txt": b"Abyssinian_1 1 1 1\namerican_bulldog_10 2 2 1\n",
        "annotations/test.txt": b"Abyssinian_2 1 1 1\namerican_bulldog_20 2 2 1\n",
        "annotations/trimaps/._Abyssinian_1.png": b"x",
    }
    images = {f"images/{name}.jpg": image for name, image in zip([*names, "unlisted_1"], jpegs, strict=False)}
    serve_set("oxford-pets", pack_tar({**images, "images/Abyssinian_1.mat": b"x"}), pack_tar(lists))
    assert download(ftcli, "oxford-pets", here) == {
        "train/Abyssinian/Abyssinian_1.jpg": jpegs[0],
        "train/american_bulldog/american_bulldog_10.jpg": jpegs[1],
        "test/Abyssinian/Abyssinian_2.jpg": jpegs[2],
        "test/american_bulldog/american_bulldog_20.jpg": jpegs[3],
    }


def test_build_food101(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    shared = {"train": ["apple_pie/1", "sushi/2"], "test": ["apple_pie/3", "sushi/4"]}
    members = {
        f"food-101/meta/{split}.json": json.dumps({path.split("/")[0]: [path] for path in paths}).encode()
        for split, paths in shared.items()
    }
    paths = [path for listed in shared.values() for path in listed]
    members |= {f"food-101/images/{path}.jpg": jpegs[number] for number, path in enumerate(paths)}
    serve_set("food101", pack_tar(members))
    assert download(ftcli, "food101", here) == {
        f"{split}/{path}.jpg": jpegs[paths.index(path)] for split, listed in shared.items() for path in listed
    }


def test_build_dtd(here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...]) -> None:
    images = {
        f"dtd/images/{kind}/{kind}_{n}.jpg": jpegs[3 * i + n]
        for i, kind in enumerate(("banded", "zigzagged"))
        for n in range(3)
    }
    lists: dict[str, bytes] = {}
    for number, split in enumerate(("train", "val", "test")):
        for part in (1, 2):
            paths = [f"{kind}/{kind}_{(number + part) % 3}.jpg" for kind in ("banded", "zigzagged")]
            lists[f"dtd/labels/{split}{part}.txt"] = "\n".join(paths).encode() + b"\n"
    serve_set("dtd", pack_tar({**images, **lists}))
    files = download(ftcli, "dtd", here)
    assert sorted(files) == [
        "test/banded/banded_0.jpg",
        "test/zigzagged/zigzagged_0.jpg",
        "train/banded/banded_1.jpg",
        "train/zigzagged/zigzagged_1.jpg",
        "val/banded/banded_2.jpg",
        "val/zigzagged/zigzagged_2.jpg",
    ]
    assert files["val/zigzagged/zigzagged_2.jpg"] == images["dtd/images/zigzagged/zigzagged_2.jpg"]


def test_build_flowers102(
    here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(content: Mapping[str, Any]) -> bytes:
        file = io.BytesIO()
        savemat(file, dict(content))
        return file.getvalue()

    archive = pack_tar({f"jpg/image_{number:05d}.jpg": jpegs[number] for number in range(1, 7)})
    labels = save({"labels": np.array([[77, 60, 77, 60, 77, 60]], dtype=np.uint8)})
    splits = save({"trnid": np.array([[6, 1]]), "valid": np.array([[3, 2]]), "tstid": np.array([[4, 5]])})
    serve_set("flowers102", archive, labels, splits)
    for key, content in (("label", labels), ("setid", splits)):  # torchvision checks these digests again
        monkeypatch.setitem(
            Flowers102._file_dict, key, (Flowers102._file_dict[key][0], hashlib.md5(content).hexdigest())
        )
    assert download(ftcli, "flowers102", here) == {
        "train/pink-yellow dahlia/00006.jpg": jpegs[6],
        "train/passion flower/00001.jpg": jpegs[1],
        "val/passion flower/00003.jpg": jpegs[3],
        "val/pink-yellow dahlia/00002.jpg": jpegs[2],
        "test/pink-yellow dahlia/00004.jpg": jpegs[4],
        "test/passion flower/00005.jpg": jpegs[5],
    }


@pytest.mark.parametrize(
    ("name", "classes"),
    [("mnist", ("0", "9")), ("kmnist", ("o", "wo")), ("fashion-mnist", ("T-shirt-top", "Ankle boot"))],
)
def test_build_mnist_family(here: Path, ftcli: Ftcli, serve_set: Serve, name: str, classes: tuple[str, str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    train, test = np.array([9, 0, 0, 9], dtype=np.uint8), np.array([0, 9, 9], dtype=np.uint8)
    serve_set(name, pack_idx(pixels[:4]), pack_idx(train), pack_idx(pixels[4:]), pack_idx(test))
    files = download(ftcli, name, here)
    expected = [
        f"{split}/{classes[int(label == 9)]}/{number:05d}.png"
        for split, labels in (("train", train), ("test", test))
        for number, label in enumerate(labels, 1)
    ]
    assert sorted(files) == sorted(expected)
    for path, image in zip(expected, pixels, strict=True):
        with Image.open(io.BytesIO(files[path])) as opened:
            assert (opened.format, opened.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(opened), image)


@pytest.mark.parametrize(("name", "labels"), [("cifar10", 1), ("cifar100", 2)])
def test_build_cifar(here: Path, ftcli: Ftcli, serve_set: Serve, name: str, labels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    records = [
        bytes([7] * (labels - 1) + [n % 2]) + image.transpose(2, 0, 1).tobytes() for n, image in enumerate(pixels)
    ]
    if name == "cifar10":
        members = {
            f"cifar-10-batches-bin/data_batch_{n}.bin": b"".join(records[2 * n - 2 : 2 * n]) for n in range(1, 6)
        }
        members |= {"cifar-10-batches-bin/test_batch.bin": b"".join(records[10:])}
        members |= {"cifar-10-batches-bin/batches.meta.txt": b"airplane\nautomobile\n\n"}
    else:
        members = {"train.bin": b"".join(records[:10]), "test.bin": b"".join(records[10:])}
        members |= {"fine_label_names.txt": b"airplane\nautomobile\n", "coarse_label_names.txt": b"fish\n"}
        members = {f"cifar-100-binary/{name}": content for name, content in members.items()}
    serve_set(name, pack_tar(members))
    files = download(ftcli, name, here)
    assert len(files) == 12
    for number, image in enumerate(pixels):
        split, index = ("train", number + 1) if number < 10 else ("test", number - 9)
        with Image.open(
            io.BytesIO(files[f"{split}/{('airplane', 'automobile')[number % 2]}/{index:05d}.png"])
        ) as opened:
            assert np.array_equal(np.asarray(opened), image)


def test_build_reports_unknown_layout(
    here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...], tmp_path: Path
) -> None:
    archive = pack_tar({"food-102/images/sushi/1.jpg": jpegs[0]})
    serve_set("food101", archive)
    outcome = ftcli("data", "download", "food101")
    assert outcome.code == 3
    path = tmp_path / f"cache/downloads/{hashlib.sha256(archive).hexdigest()[:16]}-food-101.tar.gz"
    assert outcome.errors == [f"download: food101: folders are missing from {path}; report it to the publisher"]
    assert not list(here.glob("data/*"))


@pytest.mark.parametrize("entry", ["../../../../../mine", "sushi/../../../../../../mine"])
def test_build_rejects_listed_path_outside_folder(
    here: Path, ftcli: Ftcli, serve_set: Serve, jpegs: tuple[bytes, ...], entry: str
) -> None:
    (here / "mine.jpg").write_bytes(jpegs[1])
    lists = {f"food-101/meta/{split}.json": json.dumps({"sushi": [entry]}).encode() for split in ("train", "test")}
    archive = pack_tar({**lists, "food-101/images/sushi/1.jpg": jpegs[0]})
    serve_set("food101", archive)
    outcome = ftcli("data", "download", "food101")
    assert outcome.code == 3
    path = here / f"cache/downloads/{hashlib.sha256(archive).hexdigest()[:16]}-food-101.tar.gz"
    assert outcome.errors == [
        f"download: food101: {path} lists the file '../../../mine.jpg' outside its folder and is not used; report it "
        "to the publisher"
    ]
    assert (here / "mine.jpg").read_bytes() == jpegs[1]
    assert not list(here.glob("data/*"))


@pytest.fixture(scope="module")
def solar_cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[DownloadResult, RecordingReporter]:
    reporter = RecordingReporter()
    return download_dataset(
        "solar-cells", tmp_path_factory.mktemp("downloads") / "data" / "solar-cells", reporter
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
def test_solar_cells_published_splits(solar_cells: tuple[DownloadResult, RecordingReporter]) -> None:
    result, reporter = solar_cells
    assert (result.name, result.images) == ("solar-cells", 2624)
    assert result.splits == {
        "test": {"defective": 205, "functional": 451},
        "train": {"defective": 616, "functional": 1352},
    }
    assert len(cells(result.root)) == 2624
    assert reporter.reported[-1] == Progress("write solar-cells", 2624, 2624)
    assert [entry.name for entry in result.root.parent.iterdir()] == ["solar-cells"]


@pytest.mark.slow
def test_solar_cells_match_labels(solar_cells: tuple[DownloadResult, RecordingReporter]) -> None:
    splits_and_classes = cells(solar_cells[0].root)
    known = labels()
    assert splits_and_classes.keys() == known.keys()
    for name, (probability, _) in known.items():
        assert splits_and_classes[name][1] == ("defective" if probability > 0.5 else "functional")
    groups = Counter(known.values())
    tested = Counter(known[name] for name, (split, _) in splits_and_classes.items() if split == "test")
    assert len(groups) == 8
    assert all(abs(tested[group] - count / 4) < 1 for group, count in groups.items())


@pytest.mark.slow
def test_solar_cells_files_unchanged(solar_cells: tuple[DownloadResult, RecordingReporter]) -> None:
    package = importlib.util.find_spec("elpv_dataset")
    assert package is not None
    assert package.origin is not None
    for path in sorted(solar_cells[0].root.rglob("*.png"))[::100]:
        assert path.read_bytes() == (Path(package.origin).parent / "data/images" / path.name).read_bytes()


@pytest.mark.slow
def test_solar_cells_citation(solar_cells: tuple[DownloadResult, RecordingReporter]) -> None:
    text = (solar_cells[0].root / "SOURCE.txt").read_text()
    for part in ("Deitsch", "Solar Energy", "2019", "CC BY-NC-SA 4.0", "elpv-dataset"):
        assert part in text


@pytest.mark.slow
def test_solar_cells_usable_in_recipe(solar_cells: tuple[DownloadResult, RecordingReporter]) -> None:
    images = split_images(Data(root=str(solar_cells[0].root)), 0, "here")
    assert images.classes == ("defective", "functional")
    assert len(images.splits["test"]) == 656
    assert len(images.splits["train"]) + len(images.splits["val"]) == 1968


def test_solar_cells_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(DataError) as error:
        download_dataset("solar-cells", tmp_path / "solar", NullReporter())
    assert (
        str(error.value)
        == "download: solar-cells: needs the package elpv-dataset; run pip install '.[demo]' in the ftcli repository"
    )
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
        f"download: solar-cells: the package elpv-dataset lacks {package}/data/images/cell0001.png; "
        "pip install --force-reinstall elpv-dataset"
    )
    assert not (tmp_path / "solar").exists()
