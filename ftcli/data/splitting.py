"""The draw: which split each image, or each group of images, goes to."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftcli.data.entries import Entry
from ftcli.data.listing import Listing
from ftcli.runtime import derive_share

_SHOWN = 10


@dataclass(eq=False, slots=True)
class Unit:
    """What is drawn as one: an image, or a group. `share` is its own number from 0 up to 1; `name` decides between
    equal ones. `split` is where it is, None until that is settled; with `fixed` it stays there."""

    share: float
    name: str
    split: str | None = None
    fixed: bool = False


def assign_splits(
    listing: Listing, pool: str, bounds: Mapping[str, float], seed: int, held: Mapping[str, str]
) -> list[tuple[str, Entry]]:
    """Every image with its split: that of the listing, or for those in `pool` the one that is drawn.

    `bounds` are the shares below which an image belongs to each split. Notes the faults of groups in two splits, of
    splits other than those held, and of classes with too few images or groups.
    """
    _check_groups(listing, pool, held)
    _check_held(listing, pool, bounds, held)
    units = _build_units(listing, pool, seed, held)
    listed = {name: list(dict.fromkeys(unit for _, unit in pairs)) for name, pairs in units.items()}
    lacks = draw_splits({name: those for name, those in listed.items() if those}, bounds)
    lacking = [name for name in listed if name in lacks]
    for name in lacking[:_SHOWN]:
        grouped = any(entry.group is not None for entry, _ in units[name])
        listing.fail(_tell_lack(name, listed[name], tuple(bounds), lacks[name], "group" if grouped else "image"))
    if len(lacking) > _SHOWN:
        listing.fail(f"{len(lacking) - _SHOWN} more classes have too few")
    fixed = {split: classes for split, classes in listing.splits.items() if split != pool}
    homes = [(split, entry) for split, classes in fixed.items() for entries in classes.values() for entry in entries]
    return homes + [(unit.split or "train", entry) for pairs in units.values() for entry, unit in pairs]


def draw_splits(units: Mapping[str, Sequence[Unit]], bounds: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Settle the units of each class, and tell which splits a class would have to be in and cannot.

    `bounds` are the shares below which a unit belongs to each split. Only where a class would have nothing in a split
    does the nearest of its units go there. A unit may be in several classes; those with the fewest come first.
    """
    lacks: dict[str, tuple[str, ...]] = {}
    done: list[Sequence[Unit]] = []
    for name in sorted(units, key=lambda name: (len(units[name]), name)):
        done.append(units[name])
        if lack := _draw_class(units[name], bounds, done):
            lacks[name] = lack
    return lacks


def _draw_class(units: Sequence[Unit], bounds: Mapping[str, float], done: Sequence[Sequence[Unit]]) -> tuple[str, ...]:
    counts = Counter(unit.split for unit in units)
    free = sorted((unit for unit in units if unit.split is None), key=_order)
    wanting = [split for split in bounds if not counts[split]]
    if len(free) < len(wanting):
        for unit in free:
            unit.split = next((split for split, bound in bounds.items() if unit.share < bound), "train")
        lacking = [split for split in bounds if not _count(units, split)]
        if all(_borrow(units, split, bounds, done) for split in lacking):
            return ()
        return tuple(wanting)
    needs = [1 if split in wanting else 0 for split in bounds]
    start = 0
    for number, (split, bound) in enumerate(bounds.items()):
        # The cut falls where the bound lies, moved by no more than this and the later splits need for a unit each.
        end = bisect.bisect_left(free, (bound, ""), key=_order)
        end = min(max(end, start + needs[number]), len(free) - sum(needs[number + 1 :]))
        for unit in free[start:end]:
            unit.split = split
        start = end
    return ()


def _borrow(units: Sequence[Unit], split: str, bounds: Mapping[str, float], done: Sequence[Sequence[Unit]]) -> bool:
    """Move the nearest unit of a class into a split if no class that was drawn loses its last one in another by it."""
    below = [bound for name, bound in bounds.items() if bound < bounds[split]]
    low, high = max(below, default=0.0), bounds[split]
    for unit in sorted(units, key=lambda unit: (max(low - unit.share, unit.share - high), unit.name)):
        if not unit.fixed and all(_count(others, unit.split) > 1 for others in done if unit in others):
            unit.split = split
            return True
    return False


def _count(units: Sequence[Unit], split: str | None) -> int:
    return sum(unit.split == split for unit in units)


def _order(unit: Unit) -> tuple[float, str]:
    return unit.share, unit.name


def _build_units(
    listing: Listing, pool: str, seed: int, held: Mapping[str, str]
) -> dict[str, list[tuple[Entry, Unit]]]:
    """The images of the pool by class, each with what it is drawn with."""
    groups: dict[str, Unit] = {}
    units: dict[str, list[tuple[Entry, Unit]]] = {}
    for name, entries in listing.splits[pool].items():
        pairs = units.setdefault(name, [])
        for entry in entries:
            if entry.group is None:
                unit = Unit(derive_share(seed, "split", name, entry.inner), entry.path)
            elif entry.group in groups:
                unit = groups[entry.group]
            else:
                unit = groups[entry.group] = Unit(derive_share(seed, "split", entry.group), entry.group)
            if entry.path in held:
                unit.split, unit.fixed = held[entry.path], True
            pairs.append((entry, unit))
    return units


def _check_groups(listing: Listing, pool: str, held: Mapping[str, str]) -> None:
    """Note the groups that are in two splits already, by the listing or by the earlier run."""
    homes: dict[str, list[str]] = {}
    earlier: dict[str, list[str]] = {}
    for split, classes in listing.splits.items():
        for entry in (entry for entries in classes.values() for entry in entries if entry.group is not None):
            homes.setdefault(entry.group or "", []).append(split)
            if split == pool and entry.path in held:
                earlier.setdefault(entry.group or "", []).append(held[entry.path])
    _fail_torn(listing, homes, "is", "put all its images into one split")
    _fail_torn(listing, earlier, "was in the earlier run", "train anew from the recipe alone, or leave the groups out")


def _fail_torn(listing: Listing, homes: Mapping[str, Sequence[str]], verb: str, remedy: str) -> None:
    order = ("train", "val", "test")
    torn = {
        group: " and ".join(split for split in order if split in splits)
        for group, splits in homes.items()
        if len(set(splits)) > 1
    }
    for group in list(torn)[:_SHOWN]:
        listing.fail(f"group {group!r} {verb} in {torn[group]}; {remedy}")
    if len(torn) > _SHOWN:
        listing.fail(f"{len(torn) - _SHOWN} more groups are in two splits")


def _check_held(listing: Listing, pool: str, bounds: Mapping[str, float], held: Mapping[str, str]) -> None:
    """Note the images that a manifest has put into another split than that of the earlier run."""
    moved = [
        (entry.path, held[entry.path], split)
        for split, classes in listing.splits.items()
        for entries in classes.values()
        for entry in entries
        if entry.path in held and held[entry.path] not in (bounds if split == pool else (split,))
    ]
    if moved:
        path, before, now = moved[0]
        others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        listing.fail(
            f"{path!r}{others} would be in {now} and was in {before} in the earlier run; put it back, or train anew "
            "from the recipe alone"
        )


def _tell_lack(name: str, units: Sequence[Unit], splits: Sequence[str], wanting: Sequence[str], noun: str) -> str:
    """Why a class cannot be in every split."""
    kept = {unit.split for unit in units if unit.fixed}
    count = sum(not unit.fixed for unit in units)
    open_splits = [split for split in splits if split not in kept]
    nouns = noun if count == 1 else f"{noun}s"
    if count < len(open_splits):
        beside = " beside those of the earlier run" if kept else ""
        each = f"{'one each' if len(open_splits) > 1 else 'one'} in {' and '.join(open_splits)}"
        return f"class {name!r} has {count} {nouns}{beside}, too few for {each}; add {noun}s"
    return (
        f"class {name!r} has {count} {nouns}, but the classes that share them leave none for {' and '.join(wanting)}; "
        f"add {noun}s, or give the splits in a manifest"
    )
