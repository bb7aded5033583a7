"""The images of one root or several, be they folders or manifests, with every fault before any is raised."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ftcli.data.entries import Entry, SamplesBySplit, find_class_name_errors
from ftcli.data.folders import FolderScan
from ftcli.data.manifests import ManifestScan, is_manifest
from ftcli.errors import DataError
from ftcli.recipe import schema
from ftcli.results import format_count

_MAX_REPORTED = 10


@dataclass
class DatasetIndex:
    """Images by split and class. Their paths are relative to `folder`; `name` is what people call where they are.

    `is_folder` says that they are in a folder and no manifest. Faults gather in `faults`, each begun with `where`.
    """

    location: str
    name: str
    folder: Path
    is_folder: bool
    splits: SamplesBySplit = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add_error(self, message: str) -> None:
        """Note a fault."""
        self.errors.append(f"{self.location}: {message}")

    def raise_errors(self) -> None:
        """Raise one DataError with all faults, if there are any."""
        if self.errors:
            raise DataError(*self.errors)

    def check_class_names(self, other_names: Iterable[str]) -> None:
        """Note what is wrong with the names of the classes, among themselves and beside others."""
        for error in find_class_name_errors(
            [*other_names, *(name for classes in self.splits.values() for name in classes)]
        ):
            self.add_error(error)

    def entries(self) -> Iterator[Entry]:
        """Every image."""
        return (entry for classes in self.splits.values() for entries in classes.values() for entry in entries)


def index_root(root: Path, location: str, only_splits: Collection[str] | None = None) -> DatasetIndex:
    """The images of one root; of a folder those of the splits in `only` alone, where that is given.

    Paths are relative to the folder, or to that of the manifest. Raises DataError for a root that cannot be read and
    for every fault of a manifest; the faults of a folder are noted.
    """
    if is_manifest(root):
        scan = ManifestScan(root, location)
        index = DatasetIndex(location, str(root), root.parent, is_folder=False)
        index.splits = scan.read()
        index.errors = scan.errors
        index.raise_errors()
        return index
    return _index_folder(root, location, only_splits)


def index_roots(data: schema.Data, location: str) -> DatasetIndex:
    """The images of a recipe, with the groups that it asks for.

    Paths are relative to the root, or, where root is a list, to the current folder. Raises DataError as `index_root`
    does, for all roots at once, and for an image that is in two roots, for roots of which some have splits and some
    have none, for groups that the recipe and a manifest both give, and for images that data.group does not match.
    """
    index = _join_roots(data.root, location) if isinstance(data.root, tuple) else index_root(Path(data.root), location)
    index.check_class_names(data.classes or ())
    if data.group is not None:
        _assign_groups(index, re.compile(data.group))
    return index


def find_base_folder(root: str | Sequence[str]) -> Path:
    """The folder that the paths of a recipe's data.root are relative to."""
    if not isinstance(root, str):
        return Path()
    return Path(root).parent if is_manifest(Path(root)) else Path(root)


def _index_folder(root: Path, location: str, only_splits: Collection[str] | None) -> DatasetIndex:
    scan = FolderScan(root, location)
    folders = scan.find_splits()
    if not folders:
        scan.raise_errors()
    index = DatasetIndex(location, str(root), root, is_folder=True)
    for name, folder in folders.items():
        depth = 1 if name == "all" else 2
        classes = scan.list_classes(folder) if only_splits is None or name in only_splits else {}
        index.splits[name] = {
            label: [Entry(path, path.split("/", depth)[-1], label) for path in paths]
            for label, paths in classes.items()
        }
    index.errors = scan.errors
    return index


def _join_roots(roots: tuple[str, ...], location: str) -> DatasetIndex:
    """Several roots as one."""
    joined = DatasetIndex(location, ", ".join(roots), Path(), is_folder=False)
    indexes: list[DatasetIndex] = []
    for root in roots:
        try:
            indexes.append(replace(index_root(Path(root), location), name=root))
        except DataError as error:
            joined.errors += error.messages
    for index in indexes:
        joined.errors += index.errors
    joined.raise_errors()
    unsplit_names = [index.name for index in indexes if "all" in index.splits]
    if unsplit_names and len(unsplit_names) < len(indexes):
        split = next(index.name for index in indexes if "all" not in index.splits)
        joined.add_error(f"{split} has splits and {unsplit_names[0]} has none; give every root splits, or none")
    for index in indexes:
        for split, classes in index.splits.items():
            samples_by_class = joined.splits.setdefault(split, {})
            for label, entries in classes.items():
                moved = (entry._replace(path=(index.folder / entry.path).as_posix()) for entry in entries)
                samples_by_class.setdefault(label, []).extend(moved)
    _report_duplicates(joined, indexes)
    joined.raise_errors()
    return joined


def _report_duplicates(joined: DatasetIndex, indexes: list[DatasetIndex]) -> None:
    """Note the images that are in two roots."""
    root_by_path: dict[str, str] = {}
    duplicates: list[str] = []
    for index in indexes:
        base = index.folder.absolute()
        for entry in index.entries():
            first_root = root_by_path.setdefault(os.path.normpath(base / entry.path), index.name)
            if first_root != index.name:
                duplicates.append(f"{index.folder / entry.path} is in {first_root} and in {index.name}; keep it in one")
    for message in duplicates[:_MAX_REPORTED]:
        joined.add_error(message)
    if len(duplicates) > _MAX_REPORTED:
        joined.add_error(f"{len(duplicates) - _MAX_REPORTED} more images are in two roots")


def _assign_groups(index: DatasetIndex, pattern: re.Pattern[str]) -> None:
    """Give every image the group that the recipe's pattern finds in its path."""
    if any(entry.group is not None for entry in index.entries()):
        index.add_error(f"data.group is set, and {index.name} has a column group; keep one of them")
        return
    unmatched: list[str] = []

    def add_group(entry: Entry) -> Entry:
        group_match = pattern.search(entry.path_in_class)
        if group_match is None or not group_match[1]:
            unmatched.append(entry.path_in_class)
            return entry
        return entry._replace(group=group_match[1])

    grouped = {
        split: {label: [add_group(entry) for entry in entries] for label, entries in classes.items()}
        for split, classes in index.splits.items()
    }
    if not unmatched:
        index.splits = grouped
    else:
        others = f" and in {format_count(len(unmatched) - 1, 'more path')}" if len(unmatched) > 1 else ""
        index.add_error(
            f"data.group: {pattern.pattern!r} finds no group in {unmatched[0]!r}{others}; mend it so that every image "
            "has one"
        )
