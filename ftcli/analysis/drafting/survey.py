"""What can be seen of a folder of images before anything is chosen for it."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pydantic

from ftcli.data.images import BrokenImage, read_shape
from ftcli.data.sources import ImageSet, read_folder, split_images
from ftcli.errors import DataError
from ftcli.recipe.schema import Data, Recipe

LOOKED_AT = 500
"""Images whose headers are read at most."""


@dataclass(frozen=True)
class Survey:
    """Images by split and class, and the shapes of a sample of them: width, height and whether the file is grey.

    `fixed` are the splits that the images come in, `val` and `test` the shares that a recipe should draw, None where
    that would do nothing. `broken` are the sentences of those in the sample that are broken.
    """

    root: str
    fixed: tuple[str, ...]
    val: float | None
    test: float | None
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    shapes: tuple[tuple[int, int, bool], ...]
    broken: tuple[str, ...]

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(sum(counts.values()) for counts in self.splits.values())

    @property
    def train(self) -> int:
        """The number of training images."""
        return sum(self.splits["train"].values())

    @property
    def looked_at(self) -> int:
        """The number of images whose headers were read."""
        return len(self.shapes) + len(self.broken)

    @property
    def width(self) -> int:
        """The median, in pixels."""
        return round(statistics.median(width for width, _, _ in self.shapes))

    @property
    def height(self) -> int:
        """The median, in pixels."""
        return round(statistics.median(height for _, height, _ in self.shapes))

    @property
    def long(self) -> bool:
        """Whether at least half the images are more than twice as long as wide, so that only padding keeps them."""
        return self.share_longer(2) >= 0.5

    @property
    def side(self) -> int:
        """The median, in pixels, of the sides that resizing goes by: the longer ones of long images, else the shorter
        ones."""
        choose = max if self.long else min
        return round(statistics.median(choose(width, height) for width, height, _ in self.shapes))

    @property
    def grey(self) -> float:
        """The share of grey files."""
        return sum(grey for _, _, grey in self.shapes) / len(self.shapes)

    def share_longer(self, times: float) -> float:
        """The share of images whose longer side is more than `times` the shorter."""
        return sum(max(w, h) > times * min(w, h) for w, h, _ in self.shapes) / len(self.shapes)


def survey_images(root: Path, where: str) -> Survey:
    """Count the images of a folder or manifest, choose the shares to draw, and read the headers of up to LOOKED_AT.

    Raises DataError as training would, and where not one of those headers can be read.
    """
    layout = read_folder(root, where)
    pool = sum(map(len, layout.get("all", layout.get("train", {})).values()))
    val = None if "val" in layout else _choose_share(pool)
    try:
        data = Data(root=str(root)) if val is None else Data(root=str(root), val=val)
    except pydantic.ValidationError as error:
        told = f"{where}: {str(root)!r} cannot stand in a recipe; rename it to at most 1,000 characters of UTF-8"
        raise DataError(told) from error
    images = split_images(data, Recipe.model_fields["seed"].default, where)
    shapes, broken = _read_shapes(images)
    if not shapes:
        raise DataError(f"{where}: not one of {len(broken)} images of {root} can be read; the first: {broken[0]}")
    counts = {split: Counter(sample.label for sample in samples) for split, samples in images.splits.items()}
    return Survey(
        root=str(root),
        fixed=() if "all" in layout else tuple(layout),
        val=val,
        test=data.test if "all" in layout else None,
        classes=images.classes,
        splits={split: {name: count[n] for n, name in enumerate(images.classes)} for split, count in counts.items()},
        shapes=shapes,
        broken=broken,
    )


def _choose_share(pool: int) -> float:
    """Of few images more are needed for validation, or its loss tells nothing."""
    return 0.2 if pool < 500 else 0.15 if pool < 2000 else 0.1


def _read_shapes(images: ImageSet) -> tuple[tuple[tuple[int, int, bool], ...], tuple[str, ...]]:
    samples = [sample for split in images.splits.values() for sample in split]
    shapes: list[tuple[int, int, bool]] = []
    broken: list[str] = []
    for sample in samples[:: -(-len(samples) // LOOKED_AT)]:
        try:
            shapes.append(read_shape(images.root / sample.path))
        except BrokenImage as error:
            broken.append(str(error))
    return tuple(shapes), tuple(broken)
