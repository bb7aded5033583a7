"""Known data sets: addresses and digests of their files, builders, and their download into folders.

Addresses and digests are the publishers', and those of torchvision where it has the data set. Files are downloaded by
ftcli.downloads instead of torchvision, which neither resumes a download nor reports a full disk or FTCLI_OFFLINE.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torchvision import datasets

from ftcli.data.dataset import count_images
from ftcli.datasets import builders
from ftcli.datasets.builders import DatasetBuilder
from ftcli.datasets.citations import CITATIONS
from ftcli.downloads import download_file
from ftcli.errors import DataError, RunError, suggest
from ftcli.files import commit_dir
from ftcli.results import DownloadResult, Reporter

_DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class InstalledFile:
    """A file installed by a system package, compressed again with gzip. `md5` is that of its uncompressed content."""

    path: Path
    md5: str

    def is_valid(self) -> bool:
        """Return whether the content has the expected digest."""
        try:
            with gzip.open(self.path) as file:
                return hashlib.file_digest(file, "md5").hexdigest() == self.md5
        except (OSError, EOFError):
            return False


@dataclass(frozen=True)
class RemoteFile:
    """A published file of a data set: its address, its digest for `download_file`, and the same file if installed."""

    url: str
    digest: str
    installed: InstalledFile | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DatasetSpec:
    """A known data set. Each of its archives may unpack to `max_unpacked_bytes`."""

    build: builders.BuildFn
    files: tuple[RemoteFile, ...] = ()
    max_unpacked_bytes: int = 0


def _list_idx_files(
    base_url: str, digests: tuple[str, ...], installed_md5s: tuple[str, ...] = ()
) -> tuple[RemoteFile, ...]:
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    installed_files = {
        name: InstalledFile(_DEBIAN_DIR / name, md5) for name, md5 in zip(names, installed_md5s, strict=False)
    }
    return tuple(
        RemoteFile(base_url + name, f"md5:{digest}", installed_files.get(name))
        for name, digest in zip(names, digests, strict=True)
    )


_FASHION = _list_idx_files(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)
_MNIST = _list_idx_files(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
_KMNIST = _list_idx_files(
    "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
)
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec(
        builders.make_cifar_builder(
            {
                "train": [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
                "test": ["cifar-10-batches-bin/test_batch.bin"],
            },
            "cifar-10-batches-bin/batches.meta.txt",
            num_label_bytes=1,
        ),
        (RemoteFile(f"{_CIFAR}cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),),
        max_unpacked_bytes=300_000_000,
    ),
    "cifar100": DatasetSpec(
        builders.make_cifar_builder(
            {"train": ["cifar-100-binary/train.bin"], "test": ["cifar-100-binary/test.bin"]},
            "cifar-100-binary/fine_label_names.txt",
            num_label_bytes=2,
        ),
        (RemoteFile(f"{_CIFAR}cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"),),
        max_unpacked_bytes=300_000_000,
    ),
    "dtd": DatasetSpec(
        builders.make_photo_builder(
            lambda root, split: datasets.DTD(root, split, loader=Path), ("train", "val", "test"), subfolder="dtd"
        ),
        (
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            ),
        ),
        max_unpacked_bytes=2_000_000_000,
    ),
    "eurosat": DatasetSpec(
        builders.make_photo_builder(lambda root, _: datasets.EuroSAT(root, loader=Path), (".",), subfolder="eurosat"),
        (
            RemoteFile(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
                "EuroSAT.zip",
                "md5:c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
        max_unpacked_bytes=500_000_000,
    ),
    "fashion-mnist": DatasetSpec(
        builders.make_mnist_builder(datasets.FashionMNIST), _FASHION, max_unpacked_bytes=100_000_000
    ),
    "flowers102": DatasetSpec(
        builders.make_photo_builder(
            lambda root, split: datasets.Flowers102(root, split, loader=Path),
            ("train", "val", "test"),
            subfolder="flowers-102",
            image_path=lambda path, name: f"{name.replace('?', '')}/{path.name.removeprefix('image_')}",
        ),
        (
            RemoteFile(f"{_FLOWERS}102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
            RemoteFile(f"{_FLOWERS}imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d"),
            RemoteFile(f"{_FLOWERS}setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        max_unpacked_bytes=1_000_000_000,
    ),
    "food101": DatasetSpec(
        builders.make_photo_builder(lambda root, split: datasets.Food101(root, split, loader=Path), ("train", "test")),
        (RemoteFile("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "md5:85eeb15f3717b99a5da872d97d918f87"),),
        max_unpacked_bytes=10_000_000_000,
    ),
    "hotdog": DatasetSpec(
        builders.build_hotdog,
        (
            RemoteFile(
                "http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip",
                "sha1:fba480ffa8aa7e0febbb511d181409f899b9baa5",
            ),
        ),
        max_unpacked_bytes=1_000_000_000,
    ),
    "imagenette": DatasetSpec(
        builders.make_photo_builder(
            lambda root, split: datasets.Imagenette(root, split, size="320px", loader=Path),
            ("train", "val"),
            image_path=lambda path, synonyms: f"{synonyms[0]}/{path.name}",
        ),
        (
            RemoteFile(
                "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
                "md5:3df6f0d01a2c9592104656642f5e78a3",
            ),
        ),
        max_unpacked_bytes=1_000_000_000,
    ),
    "kmnist": DatasetSpec(builders.make_mnist_builder(datasets.KMNIST), _KMNIST, max_unpacked_bytes=100_000_000),
    "mnist": DatasetSpec(builders.make_mnist_builder(datasets.MNIST), _MNIST, max_unpacked_bytes=100_000_000),
    "oxford-pets": DatasetSpec(
        builders.build_pets,
        (
            RemoteFile(f"{_PETS}images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            RemoteFile(f"{_PETS}annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        max_unpacked_bytes=2_000_000_000,
    ),
    "solar-cells": DatasetSpec(builders.build_solar_cells),
}
"""The known data sets by name. The names are repeated in ftcli/recipe/dataset_names.py, which needs no torch."""


logger = logging.getLogger(__name__)


def download_dataset(name: str, root: Path, reporter: Reporter) -> DownloadResult:
    """Create the folder of a known data set completely or not at all. Return its numbers of images.

    Its files are downloaded once, or taken from a system package, and their digests are checked. Raises DataError for
    an unknown name, a root that is not empty, files that cannot be downloaded or have another digest, a corrupt or
    unsafe archive, and a missing Python package; RunError if the folder cannot be written.
    """
    if name not in DATASETS:
        raise DataError(f"download: unknown data set {name!r}; {suggest(name, DATASETS)}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"download: {name}: {root} exists and is not empty; remove it, or give another folder")
    spec = DATASETS[name]
    files = {remote.name: _get_file(remote, f"download: {name}", reporter) for remote in spec.files}
    temp_folder = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        _remove_leftovers(root)
        temp_folder.mkdir(parents=True)
        _build_dataset(spec, DatasetBuilder(name, temp_folder, files, spec.max_unpacked_bytes, reporter))
        splits = count_images(temp_folder, f"download: {name}")
        commit_dir(temp_folder, root)
    except OSError as error:
        raise RunError(
            f"download: {name}: {root} cannot be created ({error.strerror}); free disk space, or give another folder"
        ) from error
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)
    return DownloadResult(name, root, sum(sum(classes.values()) for classes in splits.values()), splits)


def _get_file(remote: RemoteFile, message_prefix: str, reporter: Reporter) -> Path:
    if remote.installed is not None and remote.installed.path.is_file():
        if remote.installed.is_valid():
            return remote.installed.path
        logger.warning(f"{message_prefix}: {remote.installed.path} differs from the published file and is ignored")
    return download_file(remote.url, remote.digest, message_prefix, reporter, DataError)


def _build_dataset(spec: DatasetSpec, builder: DatasetBuilder) -> None:
    try:
        spec.build(builder)
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        if builder.unpack_dir not in missing.parents:
            raise
        raise DataError(
            f"{builder.message_prefix}: {missing.relative_to(builder.unpack_dir)} is missing from "
            f"{builder.describe_files()}; report it to the publisher"
        ) from error
    shutil.rmtree(builder.unpack_dir, ignore_errors=True)
    (builder.folder / "SOURCE.txt").write_text(CITATIONS[builder.name], encoding="utf-8")


def _remove_leftovers(root: Path) -> None:
    """Remove unfinished folders of this root whose process is no longer running, or has this process's number."""
    if not root.parent.is_dir():
        return
    for entry in root.parent.iterdir():
        stem, _, pid = entry.name.removesuffix(".unfinished").rpartition(".")
        is_leftover = entry.name.endswith(".unfinished") and stem == f".{root.name}" and pid.isdecimal()
        if is_leftover and (int(pid) == os.getpid() or not _is_running(int(pid))):
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
