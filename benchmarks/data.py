"""The images that the benchmarks train on, made once."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fashion import PACKAGE, find_fashion, read_fashion
from benchmarks.jobs import DataSet
from benchmarks.processes import ROOT, run_program

CELLS = Path("data/solar-cells")
JPEG_SIDE, JPEG_QUALITY, NOISE_SIDE = 500, 90, 32
SPLITS = ("train", "val")


def make_data(data: DataSet) -> None:
    """Make the folder of a data set, unless it is there: always the same images.

    Of solar cells each class has its share, taken evenly from all in the order of their names, from their train for
    train and from their test for val. Of Fashion-MNIST the first are taken, likewise.
    """
    folder = ROOT / data.folder
    if folder.is_dir():
        return
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    match data.form:
        case "noise":
            _make_noise(data, making)
        case "fashion":
            _make_fashion(data, making)
        case "png" | "jpeg":
            _make_cells(data, making)
    _write_fold(making)
    making.rename(folder)


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """So many of the items, evenly from all."""
    return [items[place * len(items) // count] for place in range(count)]


def share_out(sizes: Sequence[int], count: int) -> list[int]:
    """So many divided in the proportion of the sizes; what rounding leaves goes to the last."""
    shares = [round(size * count / sum(sizes)) for size in sizes]
    return [*shares[:-1], count - sum(shares[:-1])]


def _make_cells(data: DataSet, folder: Path) -> None:
    if not (ROOT / CELLS).is_dir():
        run_program([sys.executable, "-m", "ftcli", "data", "fetch", "solar-cells", "--out", CELLS, "--json"])
    for split, source, count in (("train", "train", data.train), ("val", "test", data.val)):
        classes = [sorted(place.iterdir()) for place in sorted((ROOT / CELLS / source).iterdir())]
        for images, share in zip(classes, share_out([len(images) for images in classes], count), strict=True):
            for image in spread(images, share):
                target = folder / split / image.parent.name / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                _place_cell(image, target, data.form == "jpeg")


def _place_cell(image: Path, target: Path, as_jpeg: bool) -> None:
    if not as_jpeg:
        shutil.copyfile(image, target)
        return
    with Image.open(image) as cell:
        large = cell.resize((JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC)
    large.save(target.with_suffix(".jpg"), "JPEG", quality=JPEG_QUALITY)


def _make_noise(data: DataSet, folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", data.train), ("val", data.val)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (NOISE_SIDE, NOISE_SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "ab"[number % 2] / f"{number:06d}.png", compress_level=1)


def _make_fashion(data: DataSet, folder: Path) -> None:
    source = find_fashion(folder.parent / PACKAGE)
    for split, count in (("train", data.train), ("val", data.val)):
        for number, (pixels, name) in enumerate(read_fashion(split, count, source)):
            target = folder / split / name / f"{number:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)


def _write_fold(folder: Path) -> None:
    """A manifest in which what validated trains, and as many others validate."""
    with (folder / "fold.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *_list_fold(folder)])


def _list_fold(folder: Path) -> Iterator[tuple[str, str, str]]:
    train, val = (sorted((folder / split).rglob("*.*g")) for split in SPLITS)
    taken = set(spread(train, min(len(val), len(train) - 1)))
    for path in (*train, *val):
        yield path.relative_to(folder).as_posix(), path.parent.name, "val" if path in taken else "train"
