"""A data set between its archives and its folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ftcli.data.fetching.archives import unpack_archive
from ftcli.results import Progress, Reporter

_UNPACKED = ".unpacked"


@dataclass(frozen=True)
class Making:
    """What the maker of a data set is given: the folder to fill, and the checked files to fill it from.

    `most` is the number of bytes that the archives may unpack to.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    most: int
    reporter: Reporter

    @property
    def where(self) -> str:
        """What every sentence about it begins with."""
        return f"download: {self.name}"

    @property
    def unpacked(self) -> Path:
        """The hidden folder that archives unpack into; it is removed before the data set is published."""
        return self.folder / _UNPACKED

    def unpack(self, *archives: Path) -> Path:
        """Unpack archives into one folder, and give it. Raises DataError for one that is broken or hostile."""
        for archive in archives:
            unpack_archive(archive, self.unpacked, self.most, self.where, self.reporter)
        return self.unpacked

    def place(self, images: Iterable[tuple[Path | NDArray[np.uint8], str]]) -> None:
        """Give images their places, split/class/name: files are moved as they are, pixels become PNG files."""
        listed = list(images)
        for done, (image, place) in enumerate(listed, 1):
            target = self.folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, Path):
                image.rename(target)
            else:
                Image.fromarray(image).save(target, "PNG")
            self.reporter.advance(Progress(f"download {self.name}", done, len(listed)))
