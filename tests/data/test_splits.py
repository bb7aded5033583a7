from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from ftcli.data.dataset import ImageDataset, split_images
from ftcli.data.splits import SplitUnit, assign_units
from ftcli.errors import DataError
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Row = tuple[str, str, str, str]
"""Path, label, split and group."""


def write(folder: Path, rows: Iterable[Row]) -> Path:
    """Write a manifest, and the missing files as empty ones: indexing does not open them."""
    rows = list(rows)
    for path, *_ in rows:
        (folder / path).touch()
    lines = ["path,label,split,group", *map(",".join, rows)]
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


def split_by_path(images: ImageDataset) -> dict[str, str]:
    return {sample.path: split for split, samples in images.splits.items() for sample in samples}


def errors_of(rows: Path, **data: object) -> list[str]:
    with pytest.raises(DataError) as error:
        split_images(Data.model_validate({"root": str(rows), **data}), 0, WHERE)
    return [message.removeprefix(f"{WHERE}: ") for message in error.value.messages]


def make_rows(groups: range, seed: int = 0) -> list[Row]:
    """Return about six images per group, of two classes, and images without a group."""
    rng = random.Random(f"{seed} {groups}")
    rows = [
        (f"g{group}-{number}.png", "ab"[rng.random() < 0.3], "", f"g{group}")
        for group in groups
        for number in range(rng.randint(1, 11))
    ]
    return rows + [(f"alone-{group}.png", "ab"[group % 2], "", "") for group in groups]


def test_group_is_in_one_split(tmp_path: Path) -> None:
    rows = make_rows(range(100))
    images = split_images(Data(root=str(write(tmp_path, rows)), val=0.2, test=0.2), 0, WHERE)
    splits_by_unit: dict[str, set[str]] = {}
    for split, samples in images.splits.items():
        for sample in samples:
            splits_by_unit.setdefault(sample.group or sample.path, set()).add(split)
    assert all(len(splits) == 1 for splits in splits_by_unit.values())
    counts = [sum(splits == {name} for splits in splits_by_unit.values()) for name in ("train", "val", "test")]
    assert sum(counts) == 200
    assert 110 < counts[0] < 146  # 128 expected, standard deviation 7
    assert 18 < counts[1] < 46  # 32 expected, standard deviation 5
    assert 24 < counts[2] < 56  # 40 expected, standard deviation 6


def test_splits_stable_when_groups_are_added(tmp_path: Path) -> None:
    rows = make_rows(range(100))
    data = Data(root=str(write(tmp_path, rows)))
    before = split_by_path(split_images(data, 0, WHERE))
    later = make_rows(range(100, 130), seed=1)
    joining = [(f"late-{number}.png", "a", "", f"g{number}") for number in range(30)]
    write(tmp_path, [*later, *rows, *joining])
    after = split_by_path(split_images(data, 0, WHERE))
    assert len(after) == len(before) + len(later) + 30
    assert {path: after[path] for path in before} == before
    assert all(after[f"late-{number}.png"] == after[f"g{number}-0.png"] for number in range(30))


def test_new_images_follow_previous_split_of_group(tmp_path: Path) -> None:
    rows = make_rows(range(100))
    data = Data(root=str(write(tmp_path, rows)))
    assigned = split_by_path(split_images(data, 0, WHERE))
    other_split = {"train": "val", "val": "test", "test": "train"}
    previous_splits = {path: other_split[split] for path, split in assigned.items()}
    joining = [(f"late-{number}.png", "a", "", f"g{number}") for number in range(100)]
    write(tmp_path, [*joining, *rows])
    again = split_by_path(split_images(data, 0, WHERE, previous_splits))
    assert {path: again[path] for path in previous_splits} == previous_splits
    assert all(again[f"late-{number}.png"] == previous_splits[f"g{number}-0.png"] for number in range(100))


def test_splits_stable_when_rows_are_added(tmp_path: Path) -> None:
    rows = [(f"{number}.png", "ab"[number % 2], "", "") for number in range(300)]
    data = Data(root=str(write(tmp_path, rows)))
    before = split_by_path(split_images(data, 0, WHERE))
    write(tmp_path, [(f"new {number}.png", "abc"[number % 3], "", "") for number in range(90)] + rows)
    after = split_by_path(split_images(data, 0, WHERE))
    assert len(after) == 390
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("seed", range(20))
def test_every_class_in_every_split_with_shared_groups(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        (f"{name}{group}.png", name, "", f"g{group}")
        for name, count in zip("abcd", (3, 4, 6, 12), strict=True)
        for group in rng.sample(range(12), count)
    ]
    data = Data(root=str(write(tmp_path, rows)), val=0.1, test=0.01)
    images = split_images(data, seed, WHERE)
    assert {split: {s.label for s in samples} for split, samples in images.splits.items()} == {
        split: {0, 1, 2, 3} for split in ("train", "val", "test")
    }


def test_nearest_group_fills_split(tmp_path: Path) -> None:
    """With no fraction below the threshold, a split gets the group that a larger threshold would add first."""
    path = write(tmp_path, [(f"{name}{group}.png", name, "", f"{name}{group}") for name in "ab" for group in range(99)])
    wide, narrow = (
        split_by_path(split_images(Data(root=str(path), val=fraction, test=0.0001), 0, WHERE))
        for fraction in (0.05, 0.0001)
    )
    chosen = {path for path, split in narrow.items() if split != "train"}
    assert len(chosen) == 4
    assert chosen < {path for path, split in wide.items() if split != "train"}


THRESHOLDS = {"test": 0.1, "val": 0.2, "train": 1.0}


def assert_everywhere(classes: dict[str, list[SplitUnit]]) -> None:
    assert assign_units(classes, THRESHOLDS) == {}
    assert all({unit.split for unit in units} == {"test", "val", "train"} for units in classes.values())


def test_assign_units_moves_spare_group() -> None:
    a, b = (
        [SplitUnit(fraction, str(fraction)) for fraction in fractions]
        for fractions in ((0.05, 0.15, 0.6, 0.65), (0.06, 0.16, 0.7, 0.75))
    )
    assert_everywhere({"a": a, "b": b, "c": [*a[2:], b[2], SplitUnit(0.9, "0.9")]})


def test_assign_units_smallest_class_first() -> None:
    units = [SplitUnit(fraction, str(fraction)) for fraction in (0.11, 0.27, 0.65, 0.7, 0.94)]
    indices = {"a": (0, 2, 3, 4), "b": (1, 2, 3, 4), "c": (0, 1, 3)}
    assert_everywhere({name: [units[index] for index in those] for name, those in indices.items()})


def test_unsatisfiable_class_is_reported(tmp_path: Path) -> None:
    # a, b and c need all their groups, and d shares one with each: it gets only those that they do not need.
    rows = [(f"{name}{group}.png", name, "", f"{name}{group}") for name in "abc" for group in range(3)]
    rows += [(f"d{name}.png", "d", "", f"{name}0") for name in "abc"]
    path = write(tmp_path, rows)
    found = set()
    for seed in range(20):
        try:
            split_images(Data(root=str(path)), seed, WHERE)
        except DataError as error:
            found |= set(error.messages)
    start = f"{WHERE}: class 'd' has 3 groups, but the classes that share them leave none for"
    end = "add groups, or give the splits in a manifest"
    assert f"{start} val; {end}" in found
    assert all(message.startswith(start) and message.endswith(end) for message in found)


def test_too_few_groups_of_a_class(tmp_path: Path) -> None:
    rows = [(f"{number}.png", "a", "", f"g{number}") for number in range(9)]
    path = write(tmp_path, [*rows, *((f"b{number}.png", "b", "", f"g{number % 2}") for number in range(9))])
    assert errors_of(path) == ["class 'b' has 2 groups, too few for one each in test and val and train; add groups"]


def test_groups_in_two_splits_are_reported(tmp_path: Path) -> None:
    rows = [
        (f"{name}{group}-{split}.png", name, split, f"m{group}")
        for name in "ab"
        for group in range(12)
        for split in ("train", "test")
    ]
    errors = errors_of(write(tmp_path, rows))
    assert errors[0] == "group 'm0' is in train and test; put all its images into one split"
    assert errors[9:] == [
        "group 'm7' is in train and test; put all its images into one split",
        "2 more groups are in two splits",
    ]


def test_groups_divided_by_folders_are_reported(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / split / "a" / f"m{number % 2}_{number}.jpg").touch()
            (tmp_path / split / "b" / f"{split}{number}_.jpg").touch()
    assert errors_of(tmp_path, group="^(.*)_")[:2] == [
        "group 'm0' is in train and test; put all its images into one split",
        "group 'm1' is in train and test; put all its images into one split",
    ]


def test_row_without_split_follows_group(tmp_path: Path) -> None:
    rows = [
        (f"{name}{number}.png", name, "test" if number < 2 else "", f"g{number % 20}")
        for name in "ab"
        for number in range(40)
    ]
    images = split_images(Data(root=str(write(tmp_path, rows))), 0, WHERE)
    assert {sample.group for sample in images.splits["test"]} == {"g0", "g1"}
    assert len(images.splits["test"]) == 8


def test_manifest_contradicts_previous_splits(tmp_path: Path) -> None:
    rows = [(f"{name}{number}.png", name, "test" if number < 2 else "", "") for name in "ab" for number in range(9)]
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE, {"a0.png": "train", "b1.png": "val", "b0.png": "test"})
    assert str(error.value) == (
        f"{WHERE}: 'a0.png' and 1 more are in test and were in train in the earlier run; move them back, or train "
        "again from the recipe alone"
    )
    path = write(tmp_path, [(path, label, split or "train", "") for path, label, split, _ in rows])
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE, {"a5.png": "test", "b5.png": "val", "b0.png": "test"})
    assert str(error.value) == (
        f"{WHERE}: 'a5.png' is in train and was in test in the earlier run; move it back, or train again from the "
        "recipe alone"
    )
    path = write(tmp_path, [(path, label, "", f"g{number % 9}") for number, (path, label, *_) in enumerate(rows)])
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE, {"a0.png": "train", "b0.png": "val"})
    assert str(error.value) == (
        f"{WHERE}: group 'g0' was in train and val in the earlier run; train again from the recipe alone, or remove "
        "the groups"
    )
