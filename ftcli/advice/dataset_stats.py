"""Statistics of a dataset: images by split and class, and the sizes of a sample."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pydantic

from ftcli.data.dataset import ImageDataset, count_images, split_images
from ftcli.data.images import CorruptImageError, read_shape
from ftcli.errors import DataError
from ftcli.recipe.schema import Data, Recipe
from ftcli.results import format_count

MAX_HEADERS_READ = 500


@dataclass(frozen=True)
class DatasetStats:
    """Image counts by split and class, and shapes of a sample: width, height, and whether the file is grayscale.

    `existing_splits` are the splits of the folder. `val_fraction` and `test_fraction` are those to split off in a
    recipe, None if they would have no effect. `corrupt` holds the messages of corrupt images in the sample.
    """

    root: str
    existing_splits: tuple[str, ...]
    val_fraction: float | None
    test_fraction: float | None
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    shapes: tuple[tuple[int, int, bool], ...]
    corrupt: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """The number of images in all splits."""
        return sum(sum(counts.values()) for counts in self.splits.values())

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return sum(self.splits["train"].values())

    @property
    def num_headers_read(self) -> int:
        """The number of images whose headers were read."""
        return len(self.shapes) + len(self.corrupt)

    @property
    def median_width(self) -> int:
        """The median width in pixels."""
        return round(statistics.median(width for width, _, _ in self.shapes))

    @property
    def median_height(self) -> int:
        """The median height in pixels."""
        return round(statistics.median(height for _, height, _ in self.shapes))

    @property
    def is_elongated(self) -> bool:
        """At least half of the images have an aspect ratio above 2, so that cropping or squashing loses too much."""
        return self.fraction_longer_than(2) >= 0.5

    @property
    def median_side(self) -> int:
        """The median in pixels of the side that resizing scales: the longer one if elongated, otherwise the shorter."""
        choose = max if self.is_elongated else min
        return round(statistics.median(choose(width, height) for width, height, _ in self.shapes))

    @property
    def grey_fraction(self) -> float:
        """The fraction of grayscale files."""
        return sum(grey for _, _, grey in self.shapes) / len(self.shapes)

    def fraction_longer_than(self, ratio: float) -> float:
        """Return the fraction of images with an aspect ratio above `ratio`."""
        return sum(max(w, h) > ratio * min(w, h) for w, h, _ in self.shapes) / len(self.shapes)


def compute_dataset_stats(root: Path, location: str) -> DatasetStats:
    """Count the images of a folder or manifest, choose split fractions, and read up to MAX_HEADERS_READ headers.

    Raises DataError as training would, and if no header can be read.
    """
    layout = count_images(root, location)
    num_poolable = sum(layout.get("all", layout.get("train", {})).values())
    val_fraction = None if "val" in layout else _choose_val_fraction(num_poolable)
    try:
        data = Data(root=str(root)) if val_fraction is None else Data(root=str(root), val=val_fraction)
    except pydantic.ValidationError as error:
        message = f"{location}: {str(root)!r} is not valid in a recipe; rename it to at most 1,000 characters of UTF-8"
        raise DataError(message) from error
    dataset = split_images(data, Recipe.model_fields["seed"].default, location)
    shapes, corrupt = _read_shapes(dataset)
    if not shapes:
        raise DataError(
            f"{location}: none of {format_count(len(corrupt), 'image')} of {root} can be read; the first: {corrupt[0]}"
        )
    counts = {split: Counter(sample.label for sample in samples) for split, samples in dataset.splits.items()}
    return DatasetStats(
        root=str(root),
        existing_splits=() if "all" in layout else tuple(layout),
        val_fraction=val_fraction,
        test_fraction=data.test if "all" in layout else None,
        classes=dataset.classes,
        splits={split: {name: count[n] for n, name in enumerate(dataset.classes)} for split, count in counts.items()},
        shapes=shapes,
        corrupt=corrupt,
    )


def _choose_val_fraction(num_images: int) -> float:
    """Return the fraction of images for validation; small datasets need more for a meaningful loss."""
    return 0.2 if num_images < 500 else 0.15 if num_images < 2000 else 0.1


def _read_shapes(dataset: ImageDataset) -> tuple[tuple[tuple[int, int, bool], ...], tuple[str, ...]]:
    samples = [sample for split in dataset.splits.values() for sample in split]
    shapes: list[tuple[int, int, bool]] = []
    corrupt: list[str] = []
    for sample in samples[:: -(-len(samples) // MAX_HEADERS_READ)]:
        try:
            shapes.append(read_shape(dataset.root / sample.path))
        except CorruptImageError as error:
            corrupt.append(str(error))
    return tuple(shapes), tuple(corrupt)
