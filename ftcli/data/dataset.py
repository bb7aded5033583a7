"""Data sets: images with labels, in splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.checks import (
    check_class_names,
    check_classes,
    check_groups,
    check_previous_splits,
    format_classes,
)
from ftcli.data.index import DatasetIndex, index_root, index_roots
from ftcli.data.samples import Sample, natural_key
from ftcli.data.splits import assign_splits
from ftcli.errors import CheckpointError, DataError, ErrorList, quote_names
from ftcli.recipe import schema


@dataclass(frozen=True)
class ImageDataset:
    """The samples of a data set in splits, each sorted by label and path. Paths are relative to `root`.

    The data set of a recipe has the splits train, val and, optionally, test. `source` is its root in messages.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    source: str

    def fingerprint(self) -> str:
        """Return the SHA-256 over split, path, label, weight, group and file size of every image.

        The files are not read. A missing file counts as size -1; reading it reports the error.
        """
        digest = hashlib.sha256()
        for split, samples in self.splits.items():
            for sample in samples:
                fields = [split, sample.path, str(sample.label), str(_get_file_size(self.root / sample.path))]
                if sample.weight != 1:
                    fields.append(f"weight {sample.weight!r}")
                if sample.group is not None:
                    fields.append(f"group {sample.group}")
                digest.update("\0".join((*fields, "")).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def count_images(root: Path, location: str) -> dict[str, dict[str, int]]:
    """Return the number of images by split and class in a manifest, or in a folder with train/<class>/ or <class>/.

    A root without splits has the one split "all". Images may be at any depth below their class folder. Raises DataError
    with every error in the layout or the manifest.
    """
    index = index_root(root, ErrorList(location))
    index.errors.raise_if_any()
    return {split: {name: len(samples) for name, samples in classes.items()} for split, classes in index.splits.items()}


def split_images(
    data: schema.Data, seed: int, location: str, previous_splits: Mapping[str, str] | None = None
) -> ImageDataset:
    """Load the data set of a recipe, and assign its images to train, val and test.

    The splits of folders and manifests are used as they are. Otherwise, each image has a random fraction u that depends
    on (seed, class, path in class) alone: it is in test if u is below data.test, in val if u is below data.val of the
    rest, else in train. Adding and removing images moves no others. A group has one u, which depends on (seed, group).
    Only if a class would have no image in a split is the image with the nearest u moved there.

    `previous_splits` maps paths, relative or absolute, to the splits of an earlier run. These images stay where they
    were, and new images of their groups join them. Raises one DataError with every error found.
    """
    index = index_roots(data, location)
    check_class_names(index, data.classes or ())
    source_split = "all" if "all" in index.splits else "train"
    if source_split not in index.splits:
        index.errors.add(_describe_missing_train(index))
        index.errors.raise_if_any()
    check_classes(index, source_split, data.classes)
    thresholds = {"test": data.test, "val": data.test + (1 - data.test) * data.val, "train": 1.0}
    if source_split == "train":
        thresholds = {"train": 1.0} if "val" in index.splits else {"val": data.val, "train": 1.0}
    fixed_splits = _match_previous_splits(index, previous_splits or {})
    check_groups(index, source_split, fixed_splits)
    check_previous_splits(index, source_split, thresholds, fixed_splits)
    assignments = assign_splits(index, source_split, thresholds, seed, fixed_splits)
    index.errors.raise_if_any()
    classes = data.classes or tuple(sorted(index.splits[source_split], key=natural_key))
    labels = {name: label for label, name in enumerate(classes)}
    samples_by_split: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for split, name, sample in assignments:
        samples_by_split[split].append(sample._replace(label=labels[name]))
    if not any(sample.weight for sample in samples_by_split["train"]):
        raise DataError(f"{location}: {index.name}: every image of train has weight 0; give some a weight above 0")
    splits = {
        split: tuple(sorted(samples, key=sample_sort_key)) for split, samples in samples_by_split.items() if samples
    }
    return ImageDataset(index.folder, classes, splits, index.name)


def list_split(root: Path, split: str | None, classes: Sequence[str], location: str) -> ImageDataset:
    """Load one split of a root for a classifier with these classes, which are matched by name.

    `split` is train, val, test, or all for a root without splits; None is test or all. Some classes may have no image.
    Raises DataError for errors in the root or a missing split, CheckpointError for classes that are not in `classes`.
    """
    index = index_root(root, ErrorList(location), (split,) if split else ("test", "all"))
    if split is None:
        split = "all" if "all" in index.splits else "test"
    if split not in index.splits:
        index.errors.raise_if_any()
        if "all" in index.splits:
            raise DataError(f"{location}: {root} has no split {split!r} and no others; use the split 'all'")
        raise DataError(
            f"{location}: {root} has no split {split!r}; give one of its splits: {quote_names(index.splits)}"
        )
    check_class_names(index, classes)
    index.errors.raise_if_any()
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := sorted(index.splits[split].keys() - labels.keys(), key=natural_key):
        action = "rename the folders" if index.is_folder else "change the labels"
        raise CheckpointError(
            f"{location}: {root} has {format_classes(unknown)}, unknown to the checkpoint; "
            f"its classes are {quote_names(classes)}; {action} to the classes of the checkpoint, or use another "
            "checkpoint"
        )
    samples = (
        sample._replace(label=labels[name]) for name, samples in index.splits[split].items() for sample in samples
    )
    return ImageDataset(index.folder, tuple(classes), {split: tuple(sorted(samples, key=sample_sort_key))}, index.name)


def sample_sort_key(sample: Sample) -> tuple[int, str]:
    """Return label and path, the order of the samples of a split."""
    return sample.label, sample.path


def _match_previous_splits(index: DatasetIndex, previous_splits: Mapping[str, str]) -> dict[str, str]:
    """Return the previous split of each image of the index, by its path there."""
    base = index.folder.absolute()
    return {
        sample.path: previous_splits[path]
        for sample in (index.samples() if previous_splits else ())
        for path in (sample.path, os.path.normpath(base / sample.path))
        if path in previous_splits
    }


def _describe_missing_train(index: DatasetIndex) -> str:
    if index.is_folder:
        return (
            f"{index.name} has no folder train, only {quote_names(index.splits)}; add it, with a folder for each class"
        )
    return f"{index.name} has no image in train, only in {quote_names(index.splits)}; add some"


def _get_file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
