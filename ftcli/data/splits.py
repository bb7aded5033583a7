"""Random assignment of images, or of groups of images, to splits."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftcli.data.index import DatasetIndex
from ftcli.data.samples import Sample
from ftcli.results import format_count
from ftcli.runtime import hash_to_unit


@dataclass(eq=False, slots=True)
class SplitUnit:
    """An image, or a group whose images are all in one split.

    `fraction` is its random number in [0, 1), `name` breaks ties. `split` is None until assigned; a fixed one stays.
    """

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
) -> list[tuple[str, str, Sample]]:
    """Return split, class and sample of every image. Those of `source_split` are assigned, the others stay.

    `thresholds` are the fractions below which an image belongs to each split. Classes with too few images or groups are
    added to the errors of the index.
    """
    units = _build_units(index, source_split, seed, previous_splits)
    units_by_class = {name: list(dict.fromkeys(unit for _, unit in pairs)) for name, pairs in units.items()}
    missing_splits = assign_units(
        {name: class_units for name, class_units in units_by_class.items() if class_units}, thresholds
    )
    for name, class_units in units_by_class.items():
        if name in missing_splits:
            noun = "group" if any(sample.group is not None for sample, _ in units[name]) else "image"
            message = _describe_missing_splits(name, class_units, tuple(thresholds), missing_splits[name], noun)
            index.errors.add(message, "classes have too few")
    assigned = [(unit.split or "train", name, sample) for name, pairs in units.items() for sample, unit in pairs]
    return assigned + [
        (split, name, sample)
        for split, classes in index.splits.items()
        if split != source_split
        for name, samples in classes.items()
        for sample in samples
    ]


def assign_units(
    units: Mapping[str, Sequence[SplitUnit]], thresholds: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """Assign the units of each class to splits. Return the splits in which a class lacks a unit.

    `thresholds` are the fractions below which a unit belongs to each split. Only if a class would have no unit in a
    split is its nearest unit moved there. A unit may be in several classes. The smallest classes are assigned first.
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
        # The threshold decides, unless this or a later split would be left without the unit it needs.
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
    """Move the nearest unit of a class into a split, unless an assigned class would lose its last unit in another."""
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
) -> dict[str, list[tuple[Sample, SplitUnit]]]:
    """Return the samples of `source_split` by class, each with its unit."""
    groups: dict[str, SplitUnit] = {}
    units: dict[str, list[tuple[Sample, SplitUnit]]] = {}
    for name, samples in index.splits[source_split].items():
        pairs = units.setdefault(name, [])
        for sample in samples:
            if sample.group is None:
                unit = SplitUnit(hash_to_unit(seed, "split", name, sample.path_in_class), sample.path)
            elif sample.group in groups:
                unit = groups[sample.group]
            else:
                unit = groups[sample.group] = SplitUnit(hash_to_unit(seed, "split", sample.group), sample.group)
            if sample.path in previous_splits:
                unit.split, unit.is_fixed = previous_splits[sample.path], True
            pairs.append((sample, unit))
    return units


def _describe_missing_splits(
    name: str, units: Sequence[SplitUnit], splits: Sequence[str], missing_splits: Sequence[str], noun: str
) -> str:
    """Return the error of a class that cannot be in every split."""
    fixed_splits = {unit.split for unit in units if unit.is_fixed}
    num_free = sum(not unit.is_fixed for unit in units)
    open_splits = [split for split in splits if split not in fixed_splits]
    count = format_count(num_free, noun)
    if num_free < len(open_splits):
        suffix = " that were not in the earlier run" if fixed_splits else ""
        each = f"{'one each' if len(open_splits) > 1 else 'one'} in {' and '.join(open_splits)}"
        return f"class {name!r} has {count}{suffix}, too few for {each}; add {noun}s"
    return (
        f"class {name!r} has {count}, but the classes that share them leave none for {' and '.join(missing_splits)}; "
        f"add {noun}s, or give the splits in a manifest"
    )
