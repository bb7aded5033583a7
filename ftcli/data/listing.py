"""The images of one root or several, be they folders or manifests, with every fault before any is raised."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ftcli.data.entries import Entry, Listed, find_name_faults
from ftcli.data.folders import FolderScan
from ftcli.data.manifests import ManifestScan, is_manifest
from ftcli.errors import DataError
from ftcli.recipe import schema
from ftcli.results import tell_count

_SHOWN = 10


@dataclass
class Listing:
    """Images by split and class. Their paths are relative to `folder`; `name` is what people call where they are.

    `one_folder` says that they are in a folder and no manifest. Faults gather in `faults`, each begun with `where`.
    """

    where: str
    name: str
    folder: Path
    one_folder: bool
    splits: Listed = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Note a fault."""
        self.faults.append(f"{self.where}: {what}")

    def raise_faults(self) -> None:
        """Raise one DataError with all faults, if there are any."""
        if self.faults:
            raise DataError(*self.faults)

    def check_names(self, others: Iterable[str]) -> None:
        """Note what is wrong with the names of the classes, among themselves and beside others."""
        for fault in find_name_faults([*others, *(name for classes in self.splits.values() for name in classes)]):
            self.fail(fault)

    def entries(self) -> Iterator[Entry]:
        """Every image."""
        return (entry for classes in self.splits.values() for entries in classes.values() for entry in entries)


def list_root(root: Path, where: str, only: Collection[str] | None = None) -> Listing:
    """The images of one root; of a folder those of the splits in `only` alone, where that is given.

    Paths are relative to the folder, or to that of the manifest. Raises DataError for a root that cannot be read and
    for every fault of a manifest; the faults of a folder are noted.
    """
    if is_manifest(root):
        scan = ManifestScan(root, where)
        listing = Listing(where, str(root), root.parent, one_folder=False)
        listing.splits = scan.read()
        listing.faults = scan.faults
        listing.raise_faults()
        return listing
    return _list_folder(root, where, only)


def list_roots(data: schema.Data, where: str) -> Listing:
    """The images of a recipe, with the groups that it asks for.

    Paths are relative to the root, or, where root is a list, to the current folder. Raises DataError as `list_root`
    does, for all roots at once, and for an image that is in two roots, for roots of which some have splits and some
    have none, for groups that the recipe and a manifest both give, and for images that data.group does not match.
    """
    listing = _join(data.root, where) if isinstance(data.root, tuple) else list_root(Path(data.root), where)
    listing.check_names(data.classes or ())
    if data.group is not None:
        _put_groups(listing, re.compile(data.group))
    return listing


def find_base(root: str | Sequence[str]) -> Path:
    """The folder that the paths of a recipe's data.root are relative to."""
    if not isinstance(root, str):
        return Path()
    return Path(root).parent if is_manifest(Path(root)) else Path(root)


def _list_folder(root: Path, where: str, only: Collection[str] | None) -> Listing:
    scan = FolderScan(root, where)
    folders = scan.find_splits()
    if not folders:
        scan.raise_faults()
    listing = Listing(where, str(root), root, one_folder=True)
    for name, folder in folders.items():
        depth = 1 if name == "all" else 2
        classes = scan.list_classes(folder) if only is None or name in only else {}
        listing.splits[name] = {
            label: [Entry(path, path.split("/", depth)[-1], label) for path in paths]
            for label, paths in classes.items()
        }
    listing.faults = scan.faults
    return listing


def _join(roots: tuple[str, ...], where: str) -> Listing:
    """Several roots as one."""
    joined = Listing(where, ", ".join(roots), Path(), one_folder=False)
    parts: list[Listing] = []
    for root in roots:
        try:
            parts.append(replace(list_root(Path(root), where), name=root))
        except DataError as error:
            joined.faults += error.faults
    for part in parts:
        joined.faults += part.faults
    joined.raise_faults()
    whole = [part.name for part in parts if "all" in part.splits]
    if whole and len(whole) < len(parts):
        split = next(part.name for part in parts if "all" not in part.splits)
        joined.fail(f"{split} has splits and {whole[0]} has none; give every root splits, or none")
    for part in parts:
        for split, classes in part.splits.items():
            home = joined.splits.setdefault(split, {})
            for label, entries in classes.items():
                moved = (entry._replace(path=(part.folder / entry.path).as_posix()) for entry in entries)
                home.setdefault(label, []).extend(moved)
    _refuse_twice(joined, parts)
    joined.raise_faults()
    return joined


def _refuse_twice(joined: Listing, parts: list[Listing]) -> None:
    """Note the images that are in two roots."""
    known: dict[str, str] = {}
    twice: list[str] = []
    for part in parts:
        base = part.folder.absolute()
        for entry in part.entries():
            first = known.setdefault(os.path.normpath(base / entry.path), part.name)
            if first != part.name:
                twice.append(f"{part.folder / entry.path} is in {first} and in {part.name}; keep it in one")
    for fault in twice[:_SHOWN]:
        joined.fail(fault)
    if len(twice) > _SHOWN:
        joined.fail(f"{len(twice) - _SHOWN} more images are in two roots")


def _put_groups(listing: Listing, pattern: re.Pattern[str]) -> None:
    """Give every image the group that the recipe's pattern finds in its path."""
    if any(entry.group is not None for entry in listing.entries()):
        listing.fail(f"data.group is set, and {listing.name} has a column group; keep one of them")
        return
    unmatched: list[str] = []

    def find(entry: Entry) -> Entry:
        found = pattern.search(entry.inner)
        if found is None or not found[1]:
            unmatched.append(entry.inner)
            return entry
        return entry._replace(group=found[1])

    grouped = {
        split: {label: [find(entry) for entry in entries] for label, entries in classes.items()}
        for split, classes in listing.splits.items()
    }
    if not unmatched:
        listing.splits = grouped
    else:
        others = f" and in {tell_count(len(unmatched) - 1, 'more path')}" if len(unmatched) > 1 else ""
        listing.fail(
            f"data.group: {pattern.pattern!r} finds no group in {unmatched[0]!r}{others}; mend it so that every image "
            "has one"
        )
