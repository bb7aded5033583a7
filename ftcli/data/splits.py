"""The draw: which split each image, or each group of images, goes to."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftcli.data.entries import Entry
from ftcli.data.index import DatasetIndex
from ftcli.runtime import hash_to_unit

_MAX_REPORTED = 10


@dataclass(eq=False, slots=True)
class SplitUnit:
    """What is drawn as one: an image, or a group. `share` is its own number from 0 up to 1; `name` decides between
    equal ones. `split` is where it is, None until that is settled; with `fixed` it stays there."""

    fraction: float
    name: str
    split: str | None = None
    is_fixed: bool = False


def assign_splits(
    index: DatasetIndex,
    source_split: str,
    thresholds: Mapping[str, float],
    seed: int,
    previous_splits: Mapping[str, str],
) -> list[tuple[str, Entry]]:
    """Every image with its split: that of the listing, or for those in `pool` the one that is drawn.

    `bounds` are the shares below which an image belongs to each split. Notes the faults of groups in two splits, of
    splits other than those held, and of classes with too few images or groups.
    """
    _check_groups(index, source_split, previous_splits)
    _check_previous_splits(index, source_split, thresholds, previous_splits)
    units = _build_units(index, source_split, seed, previous_splits)
    units_by_class = {name: list(dict.fromkeys(unit for _, unit in pairs)) for name, pairs in units.items()}
    missing_splits = assign_units(
        {name: class_units for name, class_units in units_by_class.items() if class_units}, thresholds
    )
    failing_classes = [name for name in units_by_class if name in missing_splits]
    for name in failing_classes[:_MAX_REPORTED]:
        has_groups = any(entry.group is not None for entry, _ in units[name])
        index.add_error(
            _describe_missing_splits(
                name, units_by_class[name], tuple(thresholds), missing_splits[name], "group" if has_groups else "image"
            )
        )
    if len(failing_classes) > _MAX_REPORTED:
        index.add_error(f"{len(failing_classes) - _MAX_REPORTED} more classes have too few")
    fixed_splits = {split: classes for split, classes in index.splits.items() if split != source_split}
    assignments = [
        (split, entry) for split, classes in fixed_splits.items() for entries in classes.values() for entry in entries
    ]
    return assignments + [(unit.split or "train", entry) for pairs in units.values() for entry, unit in pairs]


def assign_units(
    units: Mapping[str, Sequence[SplitUnit]], thresholds: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """Settle the units of each class, and tell which splits a class would have to be in and cannot.

    `bounds` are the shares below which a unit belongs to each split. Only where a class would have nothing in a split
    does the nearest of its units go there. A unit may be in several classes; those with the fewest come first.
    """
    missing_by_class: dict[str, tuple[str, ...]] = {}
    assigned_classes: list[Sequence[SplitUnit]] = []
    for name in sorted(units, key=lambda name: (len(units[name]), name)):
        assigned_classes.append(units[name])
        if missing_splits := _assign_class(units[name], thresholds, assigned_classes):
            missing_by_class[name] = missing_splits
    return missing_by_class


def _assign_class(
    units: Sequence[SplitUnit], thresholds: Mapping[str, float], assigned_classes: Sequence[Sequence[SplitUnit]]
) -> tuple[str, ...]:
    counts = Counter(unit.split for unit in units)
    unassigned = sorted((unit for unit in units if unit.split is None), key=_sort_key)
    empty_splits = [split for split in thresholds if not counts[split]]
    if len(unassigned) < len(empty_splits):
        for unit in unassigned:
            unit.split = next((split for split, threshold in thresholds.items() if unit.fraction < threshold), "train")
        still_empty = [split for split in thresholds if not _count_in_split(units, split)]
        if all(_move_nearest(units, split, thresholds, assigned_classes) for split in still_empty):
            return ()
        return tuple(empty_splits)
    reserved = [1 if split in empty_splits else 0 for split in thresholds]
    start = 0
    for position, (split, threshold) in enumerate(thresholds.items()):
        # The cut falls where the bound lies, moved by no more than this and the later splits need for a unit each.
        end = bisect.bisect_left(unassigned, (threshold, ""), key=_sort_key)
        end = min(max(end, start + reserved[position]), len(unassigned) - sum(reserved[position + 1 :]))
        for unit in unassigned[start:end]:
            unit.split = split
        start = end
    return ()


def _move_nearest(
    units: Sequence[SplitUnit],
    split: str,
    thresholds: Mapping[str, float],
    assigned_classes: Sequence[Sequence[SplitUnit]],
) -> bool:
    """Move the nearest unit of a class into a split if no class that was drawn loses its last one in another by it."""
    below = [threshold for name, threshold in thresholds.items() if threshold < thresholds[split]]
    low, high = max(below, default=0.0), thresholds[split]
    for unit in sorted(units, key=lambda unit: (max(low - unit.fraction, unit.fraction - high), unit.name)):
        if not unit.is_fixed and all(
            _count_in_split(others, unit.split) > 1 for others in assigned_classes if unit in others
        ):
            unit.split = split
            return True
    return False


def _count_in_split(units: Sequence[SplitUnit], split: str | None) -> int:
    return sum(unit.split == split for unit in units)


def _sort_key(unit: SplitUnit) -> tuple[float, str]:
    return unit.fraction, unit.name


def _build_units(
    index: DatasetIndex, source_split: str, seed: int, previous_splits: Mapping[str, str]
) -> dict[str, list[tuple[Entry, SplitUnit]]]:
    """The images of the pool by class, each with what it is drawn with."""
    groups: dict[str, SplitUnit] = {}
    units: dict[str, list[tuple[Entry, SplitUnit]]] = {}
    for name, entries in index.splits[source_split].items():
        pairs = units.setdefault(name, [])
        for entry in entries:
            if entry.group is None:
                unit = SplitUnit(hash_to_unit(seed, "split", name, entry.path_in_class), entry.path)
            elif entry.group in groups:
                unit = groups[entry.group]
            else:
                unit = groups[entry.group] = SplitUnit(hash_to_unit(seed, "split", entry.group), entry.group)
            if entry.path in previous_splits:
                unit.split, unit.is_fixed = previous_splits[entry.path], True
            pairs.append((entry, unit))
    return units


def _check_groups(index: DatasetIndex, source_split: str, previous_splits: Mapping[str, str]) -> None:
    """Note the groups that are in two splits already, by the listing or by the earlier run."""
    current_splits: dict[str, list[str]] = {}
    earlier_splits: dict[str, list[str]] = {}
    for split, classes in index.splits.items():
        for entry in (entry for entries in classes.values() for entry in entries if entry.group is not None):
            current_splits.setdefault(entry.group or "", []).append(split)
            if split == source_split and entry.path in previous_splits:
                earlier_splits.setdefault(entry.group or "", []).append(previous_splits[entry.path])
    _report_split_groups(index, current_splits, "is", "put all its images into one split")
    _report_split_groups(
        index, earlier_splits, "was in the earlier run", "train anew from the recipe alone, or leave the groups out"
    )


def _report_split_groups(
    index: DatasetIndex, splits_by_group: Mapping[str, Sequence[str]], verb: str, remedy: str
) -> None:
    split_order = ("train", "val", "test")
    divided = {
        group: " and ".join(split for split in split_order if split in splits)
        for group, splits in splits_by_group.items()
        if len(set(splits)) > 1
    }
    for group in list(divided)[:_MAX_REPORTED]:
        index.add_error(f"group {group!r} {verb} in {divided[group]}; {remedy}")
    if len(divided) > _MAX_REPORTED:
        index.add_error(f"{len(divided) - _MAX_REPORTED} more groups are in two splits")


def _check_previous_splits(
    index: DatasetIndex, source_split: str, thresholds: Mapping[str, float], previous_splits: Mapping[str, str]
) -> None:
    """Note the images that a manifest has put into another split than that of the earlier run."""
    moved = [
        (entry.path, previous_splits[entry.path], split)
        for split, classes in index.splits.items()
        for entries in classes.values()
        for entry in entries
        if entry.path in previous_splits
        and previous_splits[entry.path] not in (thresholds if split == source_split else (split,))
    ]
    if moved:
        path, previous_split, current_split = moved[0]
        others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        index.add_error(
            f"{path!r}{others} would be in {current_split} and was in {previous_split} in the earlier run; put it back, or train anew "
            "from the recipe alone"
        )


def _describe_missing_splits(
    name: str, units: Sequence[SplitUnit], splits: Sequence[str], missing_splits: Sequence[str], noun: str
) -> str:
    """Why a class cannot be in every split."""
    fixed_splits = {unit.split for unit in units if unit.is_fixed}
    count = sum(not unit.is_fixed for unit in units)
    open_splits = [split for split in splits if split not in fixed_splits]
    nouns = noun if count == 1 else f"{noun}s"
    if count < len(open_splits):
        suffix = " beside those of the earlier run" if fixed_splits else ""
        each = f"{'one each' if len(open_splits) > 1 else 'one'} in {' and '.join(open_splits)}"
        return f"class {name!r} has {count} {nouns}{suffix}, too few for {each}; add {noun}s"
    return (
        f"class {name!r} has {count} {nouns}, but the classes that share them leave none for {' and '.join(missing_splits)}; "
        f"add {noun}s, or give the splits in a manifest"
    )
