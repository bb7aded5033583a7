"""Which images there are, which class each belongs to, and who trains, validates and tests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.entries import Entry
from ftcli.data.folders import name_all
from ftcli.data.listing import Listing, list_root, list_roots
from ftcli.data.splitting import assign_splits
from ftcli.errors import CheckpointError, DataError
from ftcli.recipe import schema

Layout = dict[str, dict[str, tuple[str, ...]]]
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
class ImageSet:
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
                fields = [split, sample.path, str(sample.label), str(_measure(self.root / sample.path))]
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
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)
    ), name


def read_folder(root: Path, where: str) -> Layout:
    """List the images of a manifest, or below a root that holds train/<class>/ (and val/, test/), or one folder a
    class (split "all").

    Images may lie at any depth below a class folder; links are followed; hidden files and files that are no images
    are passed over. `valid` and `validation` are val, and case does not matter. Raises one DataError with every fault:
    a root that is missing or no folder, no class folders, a class folder without an image, images beside the class
    folders, folders beside the splits, a folder that cannot be read, a faulty row. Each fault begins with `where`.
    """
    listing = list_root(root, where)
    listing.raise_faults()
    return {
        split: {name: tuple(entry.path for entry in entries) for name, entries in classes.items()}
        for split, classes in listing.splits.items()
    }


def split_images(data: schema.Data, seed: int, where: str, held: Mapping[str, str] | None = None) -> ImageSet:
    """Say who trains, validates and tests.

    What folders and manifests fix stands. Otherwise each image has its own share u, drawn from (seed, class, path
    within the class) alone, and u below data.test is test, below data.val of what remains is val, and the rest train:
    images that are added or taken away move nobody else. A group has one share for all its images, drawn from (seed,
    group) alone. Only where a class would have no image in a split does the nearest one by u go there. `held` maps
    paths, relative or absolute, to the split they had in an earlier run, where they stay; who joins their group joins
    them.

    Raises one DataError with every fault: those of `list_roots`, a root without train, fewer than two classes, a class
    that train lacks or that val or test lacks, classes other than data.classes, a class with too few images or groups,
    a group that is in two splits, a split other than that of the earlier run, training images without any weight.
    """
    listing = list_roots(data, where)
    pool = "all" if "all" in listing.splits else "train"
    if pool not in listing.splits:
        listing.fail(_tell_no_train(listing))
        listing.raise_faults()
    _check_classes(listing, pool, data.classes)
    bounds = {"test": data.test, "val": data.test + (1 - data.test) * data.val, "train": 1.0}
    if pool == "train":
        bounds = {"train": 1.0} if "val" in listing.splits else {"val": data.val, "train": 1.0}
    homes = assign_splits(listing, pool, bounds, seed, _recognize(listing, held or {}))
    listing.raise_faults()
    classes = data.classes or tuple(sorted(listing.splits[pool], key=natural_key))
    labels = {name: label for label, name in enumerate(classes)}
    found: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for split, entry in homes:
        found[split].append(_label(entry, labels))
    if not any(sample.weight for sample in found["train"]):
        raise DataError(f"{where}: {listing.name}: every image of train weighs 0; give some a weight above 0")
    splits = {split: tuple(sorted(samples, key=order_samples)) for split, samples in found.items() if samples}
    return ImageSet(listing.folder, classes, splits, listing.name)


def list_split(root: Path, split: str | None, classes: Sequence[str], where: str) -> ImageSet:
    """List one split of another root for a classifier of known classes, as an ImageSet with this split alone.

    `split` is train, val or test, or all where the root has no splits; None is test, or all where it has none. Classes
    find their label by name; some may have no image. Raises DataError for faults of the root and for a split that is
    not there, CheckpointError for classes that the classifier does not know.
    """
    listing = list_root(root, where, (split,) if split else ("test", "all"))
    if split is None:
        split = "all" if "all" in listing.splits else "test"
    if split not in listing.splits:
        listing.raise_faults()
        if "all" in listing.splits:
            kind = "is a folder of classes" if listing.one_folder else "names no splits"
            raise DataError(f"{where}: {root} {kind} and has no split {split!r}; use the split 'all'")
        raise DataError(f"{where}: {root} has no split {split!r}; give one that it has: {name_all(listing.splits)}")
    listing.check_names(classes)
    listing.raise_faults()
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := sorted(listing.splits[split].keys() - labels.keys(), key=natural_key):
        raise CheckpointError(
            f"{where}: {root} has {_tell(unknown)} that the checkpoint does not know; "
            f"its classes are {name_all(classes)}"
        )
    samples = (_label(entry, labels) for entries in listing.splits[split].values() for entry in entries)
    return ImageSet(listing.folder, tuple(classes), {split: tuple(sorted(samples, key=order_samples))}, listing.name)


def _recognize(listing: Listing, held: Mapping[str, str]) -> dict[str, str]:
    """What is held of the images of a listing, by their paths in it."""
    base = listing.folder.absolute()
    return {
        entry.path: held[path]
        for entry in (listing.entries() if held else ())
        for path in (entry.path, os.path.normpath(base / entry.path))
        if path in held
    }


def _label(entry: Entry, labels: Mapping[str, int]) -> Sample:
    return Sample(entry.path, labels[entry.label], entry.weight, entry.group)


def _tell_no_train(listing: Listing) -> str:
    if listing.one_folder:
        return (
            f"{listing.name} has no folder train, only {name_all(listing.splits)}; add it, with a folder for each class"
        )
    return f"{listing.name} has no image of train, only of {name_all(listing.splits)}; add some"


def _check_classes(listing: Listing, pool: str, given: Sequence[str] | None) -> None:
    """Note the faults of splits whose classes differ from train's, and of a recipe whose classes differ from those."""
    have = listing.splits[pool].keys()
    if not have:
        return  # noted when it was listed, as for other splits below
    home = f"{listing.name}/train" if listing.one_folder and pool == "train" else listing.name
    what, out = (
        ("the folder", "move the folder away") if listing.one_folder else ("images of it", "take its images out")
    )
    if len(have) == 1:
        listing.fail(f"{home} has one class only, {name_all(have)}; a classifier needs at least 2")
    for split, classes in listing.splits.items():
        if lacks := sorted(have - classes.keys(), key=natural_key) if classes else []:
            listing.fail(f"{listing.name}: {split} lacks {_tell(lacks)} that train has; give both the same classes")
        if extra := sorted(classes.keys() - have, key=natural_key):
            listing.fail(f"{listing.name}: train lacks {_tell(extra)} that {split} has; give both the same classes")
    if given is None:
        return
    if lacks := [name for name in given if name not in have]:
        listing.fail(f"{home} lacks {_tell(lacks)} that data.classes names; add {what}, or mend data.classes")
    if extra := sorted(have - set(given), key=natural_key):
        listing.fail(f"{home} has {_tell(extra)} beyond data.classes; {out}, or mend data.classes")


def order_samples(sample: Sample) -> tuple[int, str]:
    """The key by which the samples of a split are sorted: label, then path."""
    return sample.label, sample.path


def _tell(names: Sequence[str]) -> str:
    return f"the {'class' if len(names) == 1 else 'classes'} {name_all(names)}"


def _measure(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
