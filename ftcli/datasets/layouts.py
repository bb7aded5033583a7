"""How the archives of known data sets are laid out, and what becomes of them: split/class/image."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.data.images import is_image
from ftcli.datasets.builder import DatasetBuilder

BuildFn = Callable[[DatasetBuilder], None]
"""Fills the folder of a data set."""

_Pixels = NDArray[np.uint8]
_MAX_IDX_BYTES = 10**8  # bytes of an unpacked IDX file; MNIST's and its kin's largest has 47 million


def make_folder_builder(splits: Mapping[str, str], class_names: Mapping[str, str] | None = None) -> BuildFn:
    """For an archive with a folder for each class inside the folders of `splits`: split -> folder ("." -> folder: no
    splits). `names` maps folders to classes where these are called otherwise."""

    def build(builder: DatasetBuilder) -> None:
        unpacked = builder.unpack(*builder.files)
        builder.add_images(
            (image, f"{split}/{(class_names or {}).get(folder.name, folder.name)}/{image.name}")
            for split, subfolder in splits.items()
            for folder in sorted((unpacked / subfolder).iterdir())
            if folder.is_dir()
            for image in sorted(folder.iterdir())
            if is_image(image.name) and not image.name.startswith(".")
        )

    return build


def make_idx_builder(classes: tuple[str, ...]) -> BuildFn:
    """For MNIST and its kin: images and labels of train and of test in the IDX format of Yann LeCun, each in gzip."""

    def build(builder: DatasetBuilder) -> None:
        arrays = [_read_idx(path) for path in builder.files]
        builder.add_images(
            (pixels, f"{split}/{classes[label]}/{number:05d}.png")
            for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True), 1)
        )

    return build


def make_cifar_builder(splits: Mapping[str, tuple[str, ...]], class_names_file: str, num_label_bytes: int) -> BuildFn:
    """For CIFAR's binary version: records of `labels` bytes, the last of which counts, and 3 x 32 x 32 pixels.

    `names` is the file of the classes, a line each; `splits` gives the files of each split in order.
    """

    def build(builder: DatasetBuilder) -> None:
        unpacked = builder.unpack(*builder.files)
        classes = (unpacked / class_names_file).read_text(encoding="utf-8").split()
        builder.add_images(
            (pixels, f"{split}/{classes[label]}/{number:05d}.png")
            for split, files in splits.items()
            for number, (label, pixels) in enumerate(
                _read_cifar([unpacked / file for file in files], num_label_bytes), 1
            )
        )

    return build


def make_flowers_builder(classes: tuple[str, ...]) -> BuildFn:
    """For Flowers102: an archive of image_00001.jpg and on, their labels from 1, and the numbers of each split."""

    def build(builder: DatasetBuilder) -> None:
        from scipy.io import loadmat  # scikit-learn needs it, so it is there; it takes half a second

        archive, labels_file, splits_file = builder.files
        unpacked = builder.unpack(archive)
        labels = loadmat(labels_file)["labels"].ravel()
        numbers = loadmat(splits_file)
        builder.add_images(
            (unpacked / f"jpg/image_{number:05d}.jpg", f"{split}/{classes[labels[number - 1] - 1]}/{number:05d}.jpg")
            for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
            for number in numbers[key].ravel().tolist()
        )

    return build


def build_pets(builder: DatasetBuilder) -> None:
    """For Oxford-IIIT Pet: images/<class>_<number>.jpg, and lists of trainval and test."""
    unpacked = builder.unpack(*builder.files)
    builder.add_images(
        (unpacked / f"images/{name}.jpg", f"{split}/{name.rpartition('_')[0]}/{name}.jpg")
        for split, list_name in (("train", "trainval"), ("test", "test"))
        for name in (line.split()[0] for line in _read_lines(unpacked / f"annotations/{list_name}.txt"))
    )


def build_food101(builder: DatasetBuilder) -> None:
    """For Food-101: images/<class>/<number>.jpg, and lists of train and test by class."""
    unpacked = builder.unpack(*builder.files) / "food-101"
    builder.add_images(
        (unpacked / f"images/{path}.jpg", f"{split}/{path}.jpg")
        for split in ("train", "test")
        for paths in json.loads((unpacked / f"meta/{split}.json").read_text(encoding="utf-8")).values()
        for path in paths
    )


def build_dtd(builder: DatasetBuilder) -> None:
    """For DTD: images/<class>/<name>.jpg, and ten lists each of train, val and test, of which the first is taken."""
    unpacked = builder.unpack(*builder.files) / "dtd"
    builder.add_images(
        (unpacked / f"images/{path}", f"{split}/{path}")
        for split in ("train", "val", "test")
        for path in _read_lines(unpacked / f"labels/{split}1.txt")
    )


def _read_lines(path: Path) -> Iterator[str]:
    return (line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()[:1] not in ("", "#"))


def _read_idx(path: Path) -> _Pixels:
    """The array of an IDX file: two zeros, the type (8: bytes), the number of sizes, the sizes, and the bytes."""
    with gzip.open(path) as file:
        content = file.read(_MAX_IDX_BYTES)
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes.astype(int))


def _read_cifar(files: list[Path], num_label_bytes: int) -> Iterator[tuple[int, _Pixels]]:
    for file in files:
        records = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, num_label_bytes + 3072)
        for record in records:
            yield int(record[num_label_bytes - 1]), record[num_label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)
