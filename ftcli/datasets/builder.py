"""A data set between its archives and its folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ftcli.datasets.archives import unpack_archive
from ftcli.results import Progress, Reporter

_UNPACK_DIR = ".unpacked"


@dataclass(frozen=True)
class DatasetBuilder:
    """What the maker of a data set is given: the folder to fill, and the checked files to fill it from.

    `most` is the number of bytes that the archives may unpack to.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    max_unpacked_bytes: int
    reporter: Reporter

    @property
    def message_prefix(self) -> str:
        """What every sentence about it begins with."""
        return f"download: {self.name}"

    @property
    def unpack_dir(self) -> Path:
        """The hidden folder that archives unpack into; it is removed before the data set is published."""
        return self.folder / _UNPACK_DIR

    def unpack(self, *archives: Path) -> Path:
        """Unpack archives into one folder, and give it. Raises DataError for one that is broken or hostile."""
        for archive in archives:
            unpack_archive(archive, self.unpack_dir, self.max_unpacked_bytes, self.message_prefix, self.reporter)
        return self.unpack_dir

    def add_images(self, images: Iterable[tuple[Path | NDArray[np.uint8], str]]) -> None:
        """Give images their places, split/class/name: files are moved as they are, pixels become PNG files."""
        image_list = list(images)
        for done, (image, relative_path) in enumerate(image_list, 1):
            target = self.folder / relative_path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, Path):
                image.rename(target)
            else:
                Image.fromarray(image).save(target, "PNG")
            self.reporter.update_progress(Progress(f"download {self.name}", done, len(image_list)))
