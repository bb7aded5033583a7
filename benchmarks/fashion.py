"""Fashion-MNIST (Xiao et al., arXiv 1708.07747) from Debian's package dataset-fashion-mnist."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_SPLITS = {"train": "train", "val": "t10k"}
_IMAGE_HEADER_BYTES, _LABEL_HEADER_BYTES = 16, 8
"""Header sizes of the image and label files."""


def read_fashion_mnist(split: str, count: int, source: Path) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Iterate over the first images of train, or of the test set for val: 28 x 28 grey pixels and class name."""
    name = _SPLITS[split]
    pixels = _read(source / f"{name}-images-idx3-ubyte.gz", _IMAGE_HEADER_BYTES).reshape(-1, 28, 28)
    labels = _read(source / f"{name}-labels-idx1-ubyte.gz", _LABEL_HEADER_BYTES)
    for image, label in zip(pixels[:count], labels[:count], strict=True):
        yield image, CLASSES[label]


def find_fashion_mnist(folder: Path) -> Path:
    """Return the folder of the files: the installed package, or `folder` with the unpacked package. Exits on
    failure."""
    if (installed := Path("/") / INSTALLED).is_dir():
        return installed
    unpacked = folder / INSTALLED
    if not unpacked.is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            download = subprocess.run(["apt-get", "download", PACKAGE], cwd=temporary, capture_output=True, check=False)
            packages = list(Path(temporary).glob("*.deb"))
            if download.returncode or not packages:
                sys.exit(f"{PACKAGE}: apt-get could not download it; install that package of Debian")
            subprocess.run(["dpkg-deb", "--extract", packages[0], folder], check=True)
    return unpacked


def _read(path: Path, header_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)[header_bytes:]
