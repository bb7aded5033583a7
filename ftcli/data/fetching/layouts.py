"""How the archives of known data sets are laid out, and what becomes of them: split/class/image."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.data.fetching.making import Making
from ftcli.data.images import is_image

Maker = Callable[[Making], None]
"""Fills the folder of a data set."""

_Pixels = NDArray[np.uint8]
_MOST_PIXELS = 10**8  # bytes of an unpacked IDX file; MNIST's and its kin's largest has 47 million


def sort_folders(splits: Mapping[str, str], names: Mapping[str, str] | None = None) -> Maker:
    """For an archive with a folder for each class inside the folders of `splits`: split -> folder ("." -> folder: no
    splits). `names` maps folders to classes where these are called otherwise."""

    def make(making: Making) -> None:
        unpacked = making.unpack(*making.files)
        making.place(
            (image, f"{split}/{(names or {}).get(folder.name, folder.name)}/{image.name}")
            for split, inside in splits.items()
            for folder in sorted((unpacked / inside).iterdir())
            if folder.is_dir()
            for image in sorted(folder.iterdir())
            if is_image(image.name) and not image.name.startswith(".")
        )

    return make


def sort_idx(classes: tuple[str, ...]) -> Maker:
    """For MNIST and its kin: images and labels of train and of test in the IDX format of Yann LeCun, each in gzip."""

    def make(making: Making) -> None:
        arrays = [_read_idx(path) for path in making.files]
        making.place(
            (pixels, f"{split}/{classes[label]}/{number:05d}.png")
            for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True), 1)
        )

    return make


def sort_cifar(splits: Mapping[str, tuple[str, ...]], names: str, labels: int) -> Maker:
    """For CIFAR's binary version: records of `labels` bytes, the last of which counts, and 3 x 32 x 32 pixels.

    `names` is the file of the classes, a line each; `splits` gives the files of each split in order.
    """

    def make(making: Making) -> None:
        unpacked = making.unpack(*making.files)
        classes = (unpacked / names).read_text(encoding="utf-8").split()
        making.place(
            (pixels, f"{split}/{classes[label]}/{number:05d}.png")
            for split, files in splits.items()
            for number, (label, pixels) in enumerate(_read_cifar([unpacked / file for file in files], labels), 1)
        )

    return make


def sort_flowers(classes: tuple[str, ...]) -> Maker:
    """For Flowers102: an archive of image_00001.jpg and on, their labels from 1, and the numbers of each split."""

    def make(making: Making) -> None:
        from scipy.io import loadmat  # scikit-learn needs it, so it is there; it takes half a second

        archive, labels_file, splits_file = making.files
        unpacked = making.unpack(archive)
        labels = loadmat(labels_file)["labels"].ravel()
        numbers = loadmat(splits_file)
        making.place(
            (unpacked / f"jpg/image_{number:05d}.jpg", f"{split}/{classes[labels[number - 1] - 1]}/{number:05d}.jpg")
            for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
            for number in numbers[key].ravel().tolist()
        )

    return make


def sort_pets(making: Making) -> None:
    """For Oxford-IIIT Pet: images/<class>_<number>.jpg, and lists of trainval and test."""
    unpacked = making.unpack(*making.files)
    making.place(
        (unpacked / f"images/{name}.jpg", f"{split}/{name.rpartition('_')[0]}/{name}.jpg")
        for split, listed in (("train", "trainval"), ("test", "test"))
        for name in (line.split()[0] for line in _read_lines(unpacked / f"annotations/{listed}.txt"))
    )


def sort_food(making: Making) -> None:
    """For Food-101: images/<class>/<number>.jpg, and lists of train and test by class."""
    unpacked = making.unpack(*making.files) / "food-101"
    making.place(
        (unpacked / f"images/{path}.jpg", f"{split}/{path}.jpg")
        for split in ("train", "test")
        for paths in json.loads((unpacked / f"meta/{split}.json").read_text(encoding="utf-8")).values()
        for path in paths
    )


def sort_textures(making: Making) -> None:
    """For DTD: images/<class>/<name>.jpg, and ten lists each of train, val and test, of which the first is taken."""
    unpacked = making.unpack(*making.files) / "dtd"
    making.place(
        (unpacked / f"images/{path}", f"{split}/{path}")
        for split in ("train", "val", "test")
        for path in _read_lines(unpacked / f"labels/{split}1.txt")
    )


def _read_lines(path: Path) -> Iterator[str]:
    return (line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()[:1] not in ("", "#"))


def _read_idx(path: Path) -> _Pixels:
    """The array of an IDX file: two zeros, the type (8: bytes), the number of sizes, the sizes, and the bytes."""
    with gzip.open(path) as file:
        content = file.read(_MOST_PIXELS)
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes.astype(int))


def _read_cifar(files: list[Path], labels: int) -> Iterator[tuple[int, _Pixels]]:
    for file in files:
        records = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, labels + 3072)
        for record in records:
            yield int(record[labels - 1]), record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)
