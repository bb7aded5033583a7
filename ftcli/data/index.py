"""Index of a data set: the images of its roots, by split and class, and the images of any folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ftcli.data.images import is_image
from ftcli.data.manifests import is_manifest, read_manifest
from ftcli.data.samples import SPLIT_ALIASES, Sample, SamplesBySplit
from ftcli.errors import ErrorList, format_list, quote_names
from ftcli.recipe import schema
from ftcli.results import format_count

_LAYOUT_HINT = "give a folder with train/<class>/, or with one folder a class"


@dataclass
class DatasetIndex:
    """Samples by split and class. They have no label yet: it depends on the order of the classes.

    Paths are relative to `folder`. `name` is the root in messages; several roots are joined by commas.
    """

    name: str
    folder: Path
    is_folder: bool
    errors: ErrorList
    splits: SamplesBySplit = field(default_factory=dict)

    def samples(self) -> Iterator[Sample]:
        """Yield every sample."""
        return (sample for classes in self.splits.values() for samples in classes.values() for sample in samples)


def index_root(root: Path, errors: ErrorList, only_splits: Collection[str] | None = None) -> DatasetIndex:
    """Index the images of a folder or manifest; of a folder, only those of `only_splits` if given."""
    if is_manifest(root):
        return DatasetIndex(str(root), root.parent, False, errors, read_manifest(root, errors))
    index = DatasetIndex(str(root), root, True, errors)
    for split, folder in _find_splits(root, errors).items():
        depth = 1 if split == "all" else 2
        classes = _list_classes(root, folder, errors) if only_splits is None or split in only_splits else {}
        index.splits[split] = {
            name: [Sample(path, path_in_class=path.split("/", depth)[-1]) for path in paths]
            for name, paths in classes.items()
        }
    return index


def index_roots(data: schema.Data, location: str) -> DatasetIndex:
    """Index the images of a recipe, and assign the groups of data.group.

    With several roots, paths are relative to the current folder. Raises DataError for roots that cannot be read, errors
    in manifests, and roots that cannot be joined. Errors in the layout of a single folder are added to the index.
    """
    errors = ErrorList(location)
    if isinstance(data.root, str):
        index = index_root(Path(data.root), errors)
        if not index.is_folder or not index.splits:
            errors.raise_if_any()
    else:
        indexes = [index_root(Path(root), errors) for root in data.root]
        errors.raise_if_any()
        index = _join_indexes(indexes, data.root, errors)
    if data.group is not None:
        _assign_groups(index, re.compile(data.group))
    return index


def find_base_folder(root: str | Sequence[str]) -> Path:
    """Return the folder that the paths of a recipe's data.root are relative to."""
    if not isinstance(root, str):
        return Path()
    return Path(root).parent if is_manifest(Path(root)) else Path(root)


def _find_splits(root: Path, errors: ErrorList) -> dict[str, Path]:
    """Return the folder of each split. A root with other folders and without train/ is the split "all"."""
    contents = _list_folder(root, errors)
    if contents is None:
        return {}
    folders, images = contents
    names_by_split: dict[str, list[str]] = {}
    for name in folders:
        if split := SPLIT_ALIASES.get(name.lower()):
            names_by_split.setdefault(split, []).append(name)
    others = [name for name in folders if name.lower() not in SPLIT_ALIASES]
    if not names_by_split or (others and "train" not in names_by_split):
        return {"all": root}
    if others:
        train = names_by_split["train"][0]
        verb, noun, pronoun = ("is", "a split", "it") if len(others) == 1 else ("are", "splits", "them")
        errors.add(
            f"{root} has the split {train!r}, but {quote_names(others)} {verb} not {noun}; move {pronoun} out of "
            f"{root}, or, if {train} is a class, move every class into {root / 'train'}"
        )
    for split, names in names_by_split.items():
        if len(names) > 1:
            errors.add(f"{root} has {quote_names(names)}, which all mean {split}; keep one")
    _check_loose_images(root, images, "split folders", errors)
    return {split: root / names[0] for split, names in names_by_split.items()}


def _list_classes(root: Path, folder: Path, errors: ErrorList) -> dict[str, list[str]]:
    """Return the images of each class folder in `folder`, as sorted paths relative to the root."""
    contents = _list_folder(folder, errors)
    if contents is None:
        return {}
    names, images = contents
    if names:
        _check_loose_images(folder, images, "class folders", errors)
    else:
        errors.add(f"{folder} has no class folders; put the images of each class into a folder of its own")
    classes: dict[str, list[str]] = {}
    empty: list[str] = []
    for name in names:
        num_errors = len(errors)
        paths = walk_images(folder / name, partial(_add_folder_error, errors=errors), parents=(root, folder))
        classes[name] = sorted(path.relative_to(root).as_posix() for path in paths)
        if not classes[name] and len(errors) == num_errors:
            empty.append(name)
    if empty:
        noun, pronoun = (
            ("an empty class folder", "it") if len(empty) == 1 else (f"{len(empty)} empty class folders", "them")
        )
        errors.add(f"{folder} has {noun}, {quote_names(empty)}; add images, or remove {pronoun}")
    return classes


def _list_folder(folder: Path, errors: ErrorList) -> tuple[list[str], list[str]] | None:
    try:
        return list_folder(folder)
    except OSError as error:
        _add_folder_error(folder, error, errors)
        return None


def _add_folder_error(folder: Path, error: OSError, errors: ErrorList) -> None:
    if isinstance(error, FileNotFoundError):
        errors.add(f"{folder} does not exist; {_LAYOUT_HINT}")
    elif isinstance(error, NotADirectoryError):
        errors.add(f"{folder} is not a folder or a manifest (.csv, .tsv, .parquet); {_LAYOUT_HINT}")
    else:
        errors.add(f"{folder} cannot be read ({error.strerror}); check its permissions")


def _check_loose_images(folder: Path, images: Sequence[str], kind: str, errors: ErrorList) -> None:
    """Add an error for images that are in no class folder."""
    if images:
        errors.add(
            f"{folder} has {format_count(len(images), 'image')} outside its {kind}, such as {images[0]!r}; move those "
            "to use into a class folder and the others away"
        )


def _join_indexes(indexes: Sequence[DatasetIndex], roots: Sequence[str], errors: ErrorList) -> DatasetIndex:
    """Join the indexes of several roots. Raises DataError if only some have splits, or if an image is in two roots."""
    joined = DatasetIndex(", ".join(roots), Path(), False, errors)
    roots_without_splits = [root for root, index in zip(roots, indexes, strict=True) if "all" in index.splits]
    if roots_without_splits and len(roots_without_splits) < len(indexes):
        root = next(root for root in roots if root not in roots_without_splits)
        errors.add(f"{root} has splits and {roots_without_splits[0]} has none; give every root splits, or none")
    root_by_path: dict[str, str] = {}
    for root, index in zip(roots, indexes, strict=True):
        base = index.folder.absolute()
        for split, classes in index.splits.items():
            for name, samples in classes.items():
                joined.splits.setdefault(split, {}).setdefault(name, []).extend(_move(samples, index.folder))
        for sample in index.samples():
            first_root = root_by_path.setdefault(os.path.normpath(base / sample.path), root)
            if first_root != root:
                path = index.folder / sample.path
                errors.add(f"{path} is in {first_root} and in {root}; keep it in one", "images are in two roots")
    errors.raise_if_any()
    return joined


def _move(samples: Iterable[Sample], folder: Path) -> Iterator[Sample]:
    """Yield samples with paths relative to the current folder instead of `folder`."""
    return (sample._replace(path=(folder / sample.path).as_posix()) for sample in samples)


def _assign_groups(index: DatasetIndex, pattern: re.Pattern[str]) -> None:
    """Assign to every sample the group that the pattern matches in its path."""
    if any(sample.group is not None for sample in index.samples()):
        index.errors.add(f"data.group is set, and {index.name} has a column group; keep one of them")
        return
    unmatched: list[str] = []

    def add_group(sample: Sample) -> Sample:
        match = pattern.search(sample.path_in_class)
        if match is None or not match[1]:
            unmatched.append(sample.path_in_class)
            return sample
        return sample._replace(group=match[1])

    grouped = {
        split: {name: [add_group(sample) for sample in samples] for name, samples in classes.items()}
        for split, classes in index.splits.items()
    }
    if not unmatched:
        index.splits = grouped
    else:
        paths = format_list([repr(unmatched[0]), *unmatched[1:]], 1)
        index.errors.add(
            f"data.group: {pattern.pattern!r} matches no group in {paths}; fix the pattern so that every image has one"
        )


OnError = Callable[[Path, OSError], None]


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the images directly in a folder. Hidden ones are skipped.

    Links are followed. Raises OSError if the folder cannot be read.
    """
    folders: list[str] = []
    images: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
                folders.append(entry.name)
            # Dangling links count as images, so that reading them reports an error. Pipes and devices do not.
            elif is_image(entry.name) and (entry.is_file() or not Path(entry.path).exists()):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def walk_images(
    folder: Path, on_error: OnError, max_depth: int | None = None, parents: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yield every image in a folder at any depth, or down to `max_depth`: its own first, then those of its folders.

    Links to `parents`, or to a folder that contains the link, are not followed: the walk would not end. Folders that
    cannot be read are passed to `on_error`.
    """
    return _walk(folder, on_error, max_depth, frozenset(_get_folder_id(parent) for parent in parents))


def _walk(
    folder: Path, on_error: OnError, max_depth: int | None, ancestors: frozenset[tuple[int, int] | None]
) -> Iterator[Path]:
    folder_id = _get_folder_id(folder)
    if folder_id is not None and folder_id in ancestors:
        return
    try:
        folders, images = list_folder(folder)
    except OSError as error:
        on_error(folder, error)
        return
    for name in images:
        yield folder / name
    if max_depth is None or max_depth > 1:
        for name in folders:
            yield from _walk(
                folder / name, on_error, None if max_depth is None else max_depth - 1, ancestors | {folder_id}
            )


def _get_folder_id(folder: Path) -> tuple[int, int] | None:
    """Return device and inode, or None where they cannot be read; listing the folder then reports the error."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
