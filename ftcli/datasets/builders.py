"""Builders of known data sets: from the downloaded files to folders split/class/image."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from ftcli import runtime
from ftcli.data.images import is_image
from ftcli.datasets.archives import unpack_archive
from ftcli.errors import DataError, install_hint
from ftcli.results import Progress, Reporter

_UNPACK_DIR = ".unpacked"
_CIFAR_PIXEL_BYTES = 3 * 32 * 32

_Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DatasetBuilder:
    """The folder of a data set, and the downloaded files to build it from, by their published names.

    Each archive may unpack to `max_unpacked_bytes`.
    """

    name: str
    folder: Path
    files: Mapping[str, Path]
    max_unpacked_bytes: int
    reporter: Reporter

    @property
    def message_prefix(self) -> str:
        """The start of every message."""
        return f"download: {self.name}"

    @property
    def unpack_dir(self) -> Path:
        """The hidden folder for unpacked archives, which is removed before the data set is published."""
        return self.folder / _UNPACK_DIR

    def describe_files(self) -> str:
        """Return the paths of the downloaded files for messages."""
        return " and ".join(map(str, self.files.values()))

    def unpack(self, subfolder: str = ".") -> Path:
        """Unpack all archives, and copy other files, into a subfolder of `unpack_dir`. Return `unpack_dir`."""
        folder = self.unpack_dir / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in self.files.items():
            if name.endswith(".mat"):
                shutil.copyfile(path, folder / name)
            else:
                unpack_archive(path, name, folder, self.max_unpacked_bytes, self.message_prefix, self.reporter)
        return self.unpack_dir

    def add_images(self, images: Iterable[tuple[Path | _Pixels, str]], copy: bool = False) -> None:
        """Add images at their paths split/class/name. Files are moved or copied unchanged, pixels written as PNG."""
        image_list = list(images)
        for done, (image, relative_path) in enumerate(image_list, 1):
            target = self.folder / relative_path
            self._check_inside(Path(relative_path))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(image, Path):
                Image.fromarray(image).save(target, "PNG")
            elif copy:
                shutil.copyfile(image, target)
            else:
                self._check_inside(Path(os.path.relpath(image, self.unpack_dir)))
                image.rename(target)
            self.reporter.update_progress(Progress(f"write {self.name}", done, len(image_list)))

    def _check_inside(self, path: Path) -> None:
        """Raise DataError for a path outside its folder: lists in an archive may contain any path."""
        if path.is_absolute() or ".." in path.parts:
            message = f"lists the file {str(path)!r} outside its folder and is not used; report it to the publisher"
            raise DataError(f"{self.message_prefix}: {self.describe_files()} {message}")


BuildFn = Callable[[DatasetBuilder], None]
"""Builds the folder of a data set."""


def make_photo_builder(
    load: Callable[[Path, str], Any],
    splits: Sequence[str],
    subfolder: str = ".",
    image_path: Callable[[Path, Any], str] = lambda path, class_name: f"{class_name}/{path.name}",
) -> BuildFn:
    """Return the builder for a data set of image files that torchvision parses.

    `load` returns the torchvision data set of a root and a split, with `loader=Path`: its items are then paths and
    labels. The archives are unpacked into `subfolder` of that root. `image_path` returns class/name of a path and a
    class of the torchvision data set. The split "." is for a data set without splits.
    """

    def build(builder: DatasetBuilder) -> None:
        root = builder.unpack(subfolder)
        try:
            parsed = {split: load(root, split) for split in splits}
        except RuntimeError as error:  # torchvision's for missing folders
            message = f"folders are missing from {builder.describe_files()}; report it to the publisher"
            raise DataError(f"{builder.message_prefix}: {message}") from error
        builder.add_images(
            (path, f"{split}/{image_path(path, dataset.classes[label])}")
            for split, dataset in parsed.items()
            for path, label in dataset
        )

    return build


def make_mnist_builder(dataset_class: type[datasets.MNIST]) -> BuildFn:
    """Return the builder for a data set in the format of MNIST. Images are numbered in the order of its files."""

    def build(builder: DatasetBuilder) -> None:
        root = builder.unpack(f"{dataset_class.__name__}/raw")
        # Classes such as "0 - zero" and "T-shirt/top" become names of folders.
        classes = [name.split(" - ")[0].replace("/", "-") for name in dataset_class.classes]
        builder.add_images(
            (pixels.numpy(), f"{split}/{classes[label]}/{number:05d}.png")
            for split in ("train", "test")
            for dataset in (dataset_class(root, train=split == "train"),)
            for number, (pixels, label) in enumerate(zip(dataset.data, dataset.targets.tolist(), strict=True), 1)
        )

    return build


def make_cifar_builder(splits: Mapping[str, Sequence[str]], class_names_file: str, num_label_bytes: int) -> BuildFn:
    """Return the builder for the binary version of CIFAR.

    In a record, the last of `num_label_bytes` is the label, and the pixels follow. torchvision is not used: it reads
    the version in pickles, which can execute code.
    """

    def build(builder: DatasetBuilder) -> None:
        root = builder.unpack()
        classes = (root / class_names_file).read_text(encoding="utf-8").split()
        builder.add_images(
            (pixels, f"{split}/{classes[label]}/{number:05d}.png")
            for split, files in splits.items()
            for number, (label, pixels) in enumerate(_read_cifar([root / file for file in files], num_label_bytes), 1)
        )

    return build


def _read_cifar(files: Iterable[Path], num_label_bytes: int) -> Iterator[tuple[int, _Pixels]]:
    for file in files:
        records = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, num_label_bytes + _CIFAR_PIXEL_BYTES)
        for record in records:
            yield int(record[num_label_bytes - 1]), record[num_label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)


def build_pets(builder: DatasetBuilder) -> None:
    """Build Oxford-IIIT Pet from its lists of trainval and test. torchvision would decode every image."""
    root = builder.unpack()
    builder.add_images(
        (root / f"images/{name}.jpg", f"{split}/{name.rpartition('_')[0]}/{name}.jpg")
        for split, list_name in (("train", "trainval"), ("test", "test"))
        for name in _read_first_words(root / f"annotations/{list_name}.txt")
    )


def _read_first_words(path: Path) -> Iterator[str]:
    """Yield the first word of each line that is not empty or a comment."""
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    return (line.split()[0] for line in lines if line and not line.startswith("#"))


def build_hotdog(builder: DatasetBuilder) -> None:
    """Build Hotdog or not, whose archive has the folders hotdog/split/class."""
    root = builder.unpack() / "hotdog"
    builder.add_images(
        (image, image.relative_to(root).as_posix()) for image in sorted(root.glob("*/*/*")) if is_image(image.name)
    )


def build_solar_cells(builder: DatasetBuilder) -> None:
    """Build the solar cells from the Python package elpv-dataset: 1,968 in train and 656 in test, as in Deitsch et al.

    The package's table has path, defect probability and cell type. A cell is defective above a probability of 0.5.
    """
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DataError(f"{builder.message_prefix}: needs the package elpv-dataset; {install_hint('demo')}")
    source = Path(package.origin).parent / "data"
    try:
        rows = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
        test_paths = _sample_test_paths(rows)
        builder.add_images(
            (
                (
                    source / path,
                    f"{'test' if path in test_paths else 'train'}/"
                    f"{'defective' if float(probability) > 0.5 else 'functional'}/{Path(path).name}",
                )
                for path, probability, _ in rows
            ),
            copy=True,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{builder.message_prefix}: the package elpv-dataset lacks {error.filename}; "
            "pip install --force-reinstall elpv-dataset"
        ) from error


def _sample_test_paths(rows: Iterable[Sequence[str]]) -> set[str]:
    """Return a quarter of all paths, stratified by probability and cell type (the method of largest remainders)."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, *key in rows:
        groups[tuple(key)].append(path)
    fraction = Fraction(1, 4)
    sizes = {group: int(len(paths) * fraction) for group, paths in groups.items()}
    num_missing = round(sum(map(len, groups.values())) * fraction) - sum(sizes.values())
    by_remainder = sorted(groups, key=lambda group: (sizes[group] - len(groups[group]) * fraction, group))
    for group in by_remainder[:num_missing]:
        sizes[group] += 1
    return {
        path
        for group, paths in groups.items()
        for path in sorted(paths, key=lambda path: runtime.hash_to_unit(0, "solar-cells", Path(path).name))[
            : sizes[group]
        ]
    }
