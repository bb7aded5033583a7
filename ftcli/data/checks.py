"""Checks of a data set's classes, groups and splits. Errors are added to its index."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from ftcli.data.index import DatasetIndex
from ftcli.data.samples import has_control_char, natural_key
from ftcli.errors import format_list, quote_names


def check_class_names(index: DatasetIndex, other_names: Iterable[str]) -> None:
    """Check class names, together with `other_names`, for control characters and names that look the same."""
    first_by_normalized: dict[str, str] = {}
    for name in sorted({*other_names, *(name for classes in index.splits.values() for name in classes)}):
        if has_control_char(name):
            index.errors.add(f"class {name!r} contains a control character; rename it")
        first_name = first_by_normalized.setdefault(unicodedata.normalize("NFC", name), name)
        if first_name != name:
            index.errors.add(
                f"the classes {first_name!a} and {name!a} differ only in Unicode normalization; give both the same name"
            )


def check_classes(index: DatasetIndex, source_split: str, expected: Sequence[str] | None) -> None:
    """Check that all splits have the classes of `source_split`, and that these are the expected ones."""
    train_classes = index.splits[source_split].keys()
    if not train_classes:
        return  # reported with the index, as for the other splits below
    root = f"{index.name}/train" if index.is_folder and source_split == "train" else index.name
    if len(train_classes) == 1:
        index.errors.add(f"{root} has only one class, {quote_names(train_classes)}; add another")
    for split, classes in index.splits.items():
        if missing := sorted(train_classes - classes.keys(), key=natural_key) if classes else []:
            index.errors.add(
                f"{index.name}: {split} lacks {format_classes(missing)} that train has; give both the same classes"
            )
        if extra := sorted(classes.keys() - train_classes, key=natural_key):
            index.errors.add(
                f"{index.name}: train lacks {format_classes(extra)} that {split} has; give both the same classes"
            )
    if expected is None:
        return
    to_add, to_remove = ("the folder", "move the folder away") if index.is_folder else ("images", "remove the images")
    if missing := [name for name in expected if name not in train_classes]:
        index.errors.add(
            f"{root} lacks {format_classes(missing)} of data.classes; add {to_add}, or correct data.classes"
        )
    if extra := sorted(train_classes - set(expected), key=natural_key):
        index.errors.add(
            f"{root} has {format_classes(extra)}, not in data.classes; {to_remove}, or correct data.classes"
        )


def format_classes(names: Sequence[str]) -> str:
    """Return `the class 'a'` or `the classes 'a', 'b'`."""
    return f"the {'class' if len(names) == 1 else 'classes'} {quote_names(names)}"


def check_groups(index: DatasetIndex, source_split: str, previous_splits: Mapping[str, str]) -> None:
    """Check that no group is in two splits, now or in the previous run."""
    current: dict[str, list[str]] = {}
    previous: dict[str, list[str]] = {}
    for split, classes in index.splits.items():
        for sample in (sample for samples in classes.values() for sample in samples if sample.group is not None):
            current.setdefault(sample.group or "", []).append(split)
            if split == source_split and sample.path in previous_splits:
                previous.setdefault(sample.group or "", []).append(previous_splits[sample.path])
    for group, splits in _list_divided(current):
        index.errors.add(
            f"group {group!r} is in {splits}; put all its images into one split", "groups are in two splits"
        )
    for group, splits in _list_divided(previous):
        index.errors.add(
            f"group {group!r} was in {splits} in the earlier run; train again from the recipe alone, or remove the "
            "groups",
            "groups were in two splits in the earlier run",
        )


def _list_divided(splits_by_group: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return the groups in more than one split, each with its splits joined by "and"."""
    return [
        (group, " and ".join(split for split in ("train", "val", "test") if split in splits))
        for group, splits in splits_by_group.items()
        if len(set(splits)) > 1
    ]


def check_previous_splits(
    index: DatasetIndex, source_split: str, thresholds: Mapping[str, float], previous_splits: Mapping[str, str]
) -> None:
    """Check that no image is assigned to another split than in the previous run."""
    moved = [
        (sample.path, previous_splits[sample.path], split)
        for split, classes in index.splits.items()
        for samples in classes.values()
        for sample in samples
        if sample.path in previous_splits
        and previous_splits[sample.path] not in (thresholds if split == source_split else (split,))
    ]
    if moved:
        path, previous, current = moved[0]
        is_now, were, pronoun = ("is", "was", "it") if len(moved) == 1 else ("are", "were", "them")
        paths = format_list([repr(path), *(path for path, _, _ in moved[1:])], 1)
        index.errors.add(
            f"{paths} {is_now} in {current} and {were} in {previous} in the earlier run; move {pronoun} back, or train "
            "again from the recipe alone"
        )
