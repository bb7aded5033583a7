"""The images of the benchmarks, created once."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fashion import PACKAGE, find_fashion_mnist, read_fashion_mnist
from benchmarks.jobs import BenchmarkData
from benchmarks.processes import ROOT, run_program

SOLAR_CELLS = Path("data/solar-cells")
JPEG_SIDE, JPEG_QUALITY, NOISE_SIDE = 500, 90, 32
SPLITS = ("train", "val")


def make_data(data: BenchmarkData) -> None:
    """Create the folder of a data set if it does not exist, always with the same images.

    Solar cells are selected evenly from the sorted file names, in proportion to the classes: train from their train
    split, val from their test split. Of Fashion-MNIST the first images are used.
    """
    folder = ROOT / data.folder
    if folder.is_dir():
        return
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    match data.source:
        case "noise":
            _make_noise(data, temporary)
        case "fashion":
            _make_fashion(data, temporary)
        case "png" | "jpeg":
            _make_cells(data, temporary)
    _write_fold(temporary)
    temporary.rename(folder)


def pick_evenly(items: Sequence[Path], count: int) -> list[Path]:
    """Return `count` items at even distances."""
    return [items[index * len(items) // count] for index in range(count)]


def split_proportionally(sizes: Sequence[int], count: int) -> list[int]:
    """Split `count` in proportion to the sizes; the last part takes the rounding error."""
    counts = [round(size * count / sum(sizes)) for size in sizes]
    return [*counts[:-1], count - sum(counts[:-1])]


def _make_cells(data: BenchmarkData, folder: Path) -> None:
    if not (ROOT / SOLAR_CELLS).is_dir():
        run_program([sys.executable, "-m", "ftcli", "data", "download", "solar-cells", "--out", SOLAR_CELLS, "--json"])
    for split, source, count in (("train", "train", data.train), ("val", "test", data.val)):
        classes = [sorted(class_dir.iterdir()) for class_dir in sorted((ROOT / SOLAR_CELLS / source).iterdir())]
        for images, count_of_class in zip(
            classes, split_proportionally([len(images) for images in classes], count), strict=True
        ):
            for image in pick_evenly(images, count_of_class):
                target = folder / split / image.parent.name / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_cell(image, target, data.source == "jpeg")


def _write_cell(image: Path, target: Path, as_jpeg: bool) -> None:
    if not as_jpeg:
        shutil.copyfile(image, target)
        return
    with Image.open(image) as cell:
        large = cell.resize((JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC)
    large.save(target.with_suffix(".jpg"), "JPEG", quality=JPEG_QUALITY)


def _make_noise(data: BenchmarkData, folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", data.train), ("val", data.val)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (NOISE_SIDE, NOISE_SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "ab"[number % 2] / f"{number:06d}.png", compress_level=1)


def _make_fashion(data: BenchmarkData, folder: Path) -> None:
    source = find_fashion_mnist(folder.parent / PACKAGE)
    for split, count in (("train", data.train), ("val", data.val)):
        for number, (pixels, name) in enumerate(read_fashion_mnist(split, count, source)):
            target = folder / split / name / f"{number:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)


def _write_fold(folder: Path) -> None:
    """Write a manifest that swaps the validation images with as many training images."""
    with (folder / "fold.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *_list_fold(folder)])


def _list_fold(folder: Path) -> Iterator[tuple[str, str, str]]:
    train, val = (sorted((folder / split).rglob("*.*g")) for split in SPLITS)
    taken = set(pick_evenly(train, min(len(val), len(train) - 1)))
    for path in (*train, *val):
        yield path.relative_to(folder).as_posix(), path.parent.name, "val" if path in taken else "train"
