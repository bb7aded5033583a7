"""Which images there are, which class each belongs to, and who trains, validates and tests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.entries import Entry
from ftcli.data.folders import format_names
from ftcli.data.index import DatasetIndex, index_root, index_roots
from ftcli.data.splits import assign_splits
from ftcli.errors import CheckpointError, DataError
from ftcli.recipe import schema

PathsBySplit = dict[str, dict[str, tuple[str, ...]]]
"""Split name -> class name -> sorted paths relative to the root."""


@dataclass(frozen=True)
class Sample:
    """An image: its path relative to the root, with slashes, the index of its class, and what a manifest or a recipe
    says of it beyond that: how much it weighs in the training loss, and the group that stays together."""

    path: str
    label: int
    weight: float = 1.0
    group: str | None = None


@dataclass(frozen=True)
class ImageDataset:
    """The images of a recipe: `splits` has train, val and, where there is one, test, each sorted by label and path.

    Paths are relative to `root`; `source` is what people call where the images are.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    source: str

    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, over split, path, label and size in bytes of every image, and over its weight and
        group where it has any.

        It changes when an image comes, goes, moves or changes its size; the files are not read. A file that has gone
        since it was listed counts with size -1: whoever opens it tells of that.
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


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts names as people do: class_2 before class_10, 9 before 10. No two names have the same."""
    parts = re.split(r"([0-9]+)", name)
    # Text and digits alternate. A number without its zeros is compared by length first, so any length will do.
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if position % 2 else (0, part) for position, part in enumerate(parts)
    ), name


def list_image_paths(root: Path, location: str) -> PathsBySplit:
    """List the images of a manifest, or below a root that holds train/<class>/ (and val/, test/), or one folder a
    class (split "all").

    Images may lie at any depth below a class folder; links are followed; hidden files and files that are no images
    are passed over. `valid` and `validation` are val, and case does not matter. Raises one DataError with every fault:
    a root that is missing or no folder, no class folders, a class folder without an image, images beside the class
    folders, folders beside the splits, a folder that cannot be read, a faulty row. Each fault begins with `where`.
    """
    index = index_root(root, location)
    index.raise_errors()
    return {
        split: {name: tuple(entry.path for entry in entries) for name, entries in classes.items()}
        for split, classes in index.splits.items()
    }


def split_images(
    data: schema.Data, seed: int, location: str, previous_splits: Mapping[str, str] | None = None
) -> ImageDataset:
    """Say who trains, validates and tests.

    What folders and manifests fix stands. Otherwise each image has its own share u, drawn from (seed, class, path
    within the class) alone, and u below data.test is test, below data.val of what remains is val, and the rest train:
    images that are added or taken away move nobody else. A group has one share for all its images, drawn from (seed,
    group) alone. Only where a class would have no image in a split does the nearest one by u go there. `held` maps
    paths, relative or absolute, to the split they had in an earlier run, where they stay; who joins their group joins
    them.

    Raises one DataError with every fault: those of `index_roots`, a root without train, fewer than two classes, a class
    that train lacks or that val or test lacks, classes other than data.classes, a class with too few images or groups,
    a group that is in two splits, a split other than that of the earlier run, training images without any weight.
    """
    index = index_roots(data, location)
    source_split = "all" if "all" in index.splits else "train"
    if source_split not in index.splits:
        index.add_error(_describe_missing_train(index))
        index.raise_errors()
    _check_classes(index, source_split, data.classes)
    thresholds = {"test": data.test, "val": data.test + (1 - data.test) * data.val, "train": 1.0}
    if source_split == "train":
        thresholds = {"train": 1.0} if "val" in index.splits else {"val": data.val, "train": 1.0}
    assignments = assign_splits(
        index, source_split, thresholds, seed, _match_previous_splits(index, previous_splits or {})
    )
    index.raise_errors()
    classes = data.classes or tuple(sorted(index.splits[source_split], key=natural_key))
    labels = {name: label for label, name in enumerate(classes)}
    samples_by_split: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for split, entry in assignments:
        samples_by_split[split].append(_make_sample(entry, labels))
    if not any(sample.weight for sample in samples_by_split["train"]):
        raise DataError(f"{location}: {index.name}: every image of train weighs 0; give some a weight above 0")
    splits = {
        split: tuple(sorted(samples, key=sample_sort_key)) for split, samples in samples_by_split.items() if samples
    }
    return ImageDataset(index.folder, classes, splits, index.name)


def list_split(root: Path, split: str | None, classes: Sequence[str], location: str) -> ImageDataset:
    """List one split of another root for a classifier of known classes, as an ImageDataset with this split alone.

    `split` is train, val or test, or all where the root has no splits; None is test, or all where it has none. Classes
    find their label by name; some may have no image. Raises DataError for faults of the root and for a split that is
    not there, CheckpointError for classes that the classifier does not know.
    """
    index = index_root(root, location, (split,) if split else ("test", "all"))
    if split is None:
        split = "all" if "all" in index.splits else "test"
    if split not in index.splits:
        index.raise_errors()
        if "all" in index.splits:
            kind = "is a folder of classes" if index.is_folder else "names no splits"
            raise DataError(f"{location}: {root} {kind} and has no split {split!r}; use the split 'all'")
        raise DataError(
            f"{location}: {root} has no split {split!r}; give one that it has: {format_names(index.splits)}"
        )
    index.check_class_names(classes)
    index.raise_errors()
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := sorted(index.splits[split].keys() - labels.keys(), key=natural_key):
        raise CheckpointError(
            f"{location}: {root} has {_format_classes(unknown)} that the checkpoint does not know; "
            f"its classes are {format_names(classes)}"
        )
    samples = (_make_sample(entry, labels) for entries in index.splits[split].values() for entry in entries)
    return ImageDataset(index.folder, tuple(classes), {split: tuple(sorted(samples, key=sample_sort_key))}, index.name)


def _match_previous_splits(index: DatasetIndex, previous_splits: Mapping[str, str]) -> dict[str, str]:
    """What is held of the images of a listing, by their paths in it."""
    base = index.folder.absolute()
    return {
        entry.path: previous_splits[path]
        for entry in (index.entries() if previous_splits else ())
        for path in (entry.path, os.path.normpath(base / entry.path))
        if path in previous_splits
    }


def _make_sample(entry: Entry, labels: Mapping[str, int]) -> Sample:
    return Sample(entry.path, labels[entry.label], entry.weight, entry.group)


def _describe_missing_train(index: DatasetIndex) -> str:
    if index.is_folder:
        return (
            f"{index.name} has no folder train, only {format_names(index.splits)}; add it, with a folder for each class"
        )
    return f"{index.name} has no image of train, only of {format_names(index.splits)}; add some"


def _check_classes(index: DatasetIndex, source_split: str, expected: Sequence[str] | None) -> None:
    """Note the faults of splits whose classes differ from train's, and of a recipe whose classes differ from those."""
    train_classes = index.splits[source_split].keys()
    if not train_classes:
        return  # noted when it was listed, as for other splits below
    root_name = f"{index.name}/train" if index.is_folder and source_split == "train" else index.name
    what_to_add, how_to_remove = (
        ("the folder", "move the folder away") if index.is_folder else ("images of it", "take its images out")
    )
    if len(train_classes) == 1:
        index.add_error(f"{root_name} has one class only, {format_names(train_classes)}; a classifier needs at least 2")
    for split, classes in index.splits.items():
        if missing := sorted(train_classes - classes.keys(), key=natural_key) if classes else []:
            index.add_error(
                f"{index.name}: {split} lacks {_format_classes(missing)} that train has; give both the same classes"
            )
        if extra := sorted(classes.keys() - train_classes, key=natural_key):
            index.add_error(
                f"{index.name}: train lacks {_format_classes(extra)} that {split} has; give both the same classes"
            )
    if expected is None:
        return
    if missing := [name for name in expected if name not in train_classes]:
        index.add_error(
            f"{root_name} lacks {_format_classes(missing)} that data.classes names; add {what_to_add}, or mend data.classes"
        )
    if extra := sorted(train_classes - set(expected), key=natural_key):
        index.add_error(
            f"{root_name} has {_format_classes(extra)} beyond data.classes; {how_to_remove}, or mend data.classes"
        )


def sample_sort_key(sample: Sample) -> tuple[int, str]:
    """The key by which the samples of a split are sorted: label, then path."""
    return sample.label, sample.path


def _format_classes(names: Sequence[str]) -> str:
    return f"the {'class' if len(names) == 1 else 'classes'} {format_names(names)}"


def _get_file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
