from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.data.dataset import ImageDataset, count_images, list_split, split_images
from ftcli.data.samples import Sample, natural_key
from ftcli.errors import CheckpointError, DataError
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Fill = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Two classes of 300 files each; listing does not open them."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(300):
            (tmp_path / name / f"{number}.jpg").touch()
    return tmp_path


def split_by_path(images: ImageDataset) -> dict[str, str]:
    return {sample.path: split for split, samples in images.splits.items() for sample in samples}


def errors_of(root: Path, **data: object) -> list[str]:
    with pytest.raises(DataError) as error:
        split_images(Data.model_validate({"root": str(root), **data}), 0, WHERE)
    return list(error.value.messages)


def test_natural_key_order() -> None:
    long = "1" * 5000
    expected = [
        "",
        "007",
        "07",
        "7",
        "9",
        "10",
        long,
        "A",
        "a",
        "class_1",
        "class_2",
        "class_10",
        "x1y9",
        "x1y10",
        "犬",
    ]
    for seed in range(5):
        names = list(expected)
        random.Random(seed).shuffle(names)
        assert sorted(names, key=natural_key) == expected


def test_classes_in_natural_order(fill: Fill) -> None:
    root = fill({"10": 3, "9": 3, "1": 3})
    images = split_images(Data(root=str(root)), 0, WHERE)
    assert images.classes == ("1", "9", "10")
    assert all(
        images.classes[sample.label] == sample.path.split("/")[0] for s in images.splits.values() for sample in s
    )


@pytest.mark.covers("data.classes")
def test_classes_in_recipe_order(fill: Fill) -> None:
    root = fill({"a": 3, "b": 3, "c": 3})
    images = split_images(Data(root=str(root), classes=("c", "a", "b")), 0, WHERE)
    assert images.classes == ("c", "a", "b")
    assert all(images.classes[sample.label] == sample.path[0] for s in images.splits.values() for sample in s)


def test_count_images_reports_all_errors(fill: Fill) -> None:
    root = fill({"train/a": 2, "train/b": 1, "test/a": 1})
    assert count_images(root, WHERE) == {"train": {"a": 2, "b": 1}, "test": {"a": 1}}
    fill({"train/c": 0, "test": 1})
    with pytest.raises(DataError) as error:
        count_images(root, WHERE)
    assert len(error.value.messages) == 2


def test_class_folders_split_in_three(many: Path) -> None:
    images = split_images(Data(root=str(many), val=0.1, test=0.2), 0, WHERE)
    assert list(images.splits) == ["train", "val", "test"]
    counts = {split: len(samples) for split, samples in images.splits.items()}
    assert sum(counts.values()) == 600
    assert 90 < counts["test"] < 150  # 120 expected, standard deviation 10
    assert 27 < counts["val"] < 69  # 48 expected, standard deviation 7
    assert all(list(samples) == sorted(samples, key=lambda s: (s.label, s.path)) for samples in images.splits.values())


def test_train_folder_gives_validation_only(fill: Fill) -> None:
    root = fill({"train/a": 12, "train/b": 12, "test/a": 2, "test/b": 2})
    images = split_images(Data(root=str(root), val=0.25), 3, WHERE)
    assert {path.split("/")[0] for path, split in split_by_path(images).items() if split != "test"} == {"train"}
    assert [sample.path for sample in images.splits["test"]] == [f"test/{c}/{n}.png" for c in "ab" for n in "01"]
    assert {sample.label for sample in images.splits["val"]} == {0, 1}


def test_val_folder_is_used(fill: Fill) -> None:
    root = fill({"train/a": 9, "train/b": 9, "valid/a": 1, "valid/b": 2})
    images = split_images(Data(root=str(root), val=0.9), 0, WHERE)
    assert {split: len(samples) for split, samples in images.splits.items()} == {"train": 18, "val": 3}
    assert all(sample.path.startswith("valid/") for sample in images.splits["val"])


def test_splits_independent_of_layout(many: Path, tmp_path: Path) -> None:
    unsplit = split_images(Data(root=str(many), val=0.3, test=0.0001), 0, WHERE)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/train").mkdir()
    for name in ("cat", "dog"):
        (many / name).rename(tmp_path / "moved/train" / name)
    with_train_folder = split_images(Data(root=str(tmp_path / "moved"), val=0.3), 0, WHERE)
    before = {path for path, split in split_by_path(unsplit).items() if split == "val"}
    after = {path.removeprefix("train/") for path, split in split_by_path(with_train_folder).items() if split == "val"}
    assert len(before ^ after) <= 4


def test_splits_stable_when_images_change(many: Path) -> None:
    data = Data(root=str(many))
    before = split_by_path(split_images(data, 0, WHERE))
    for number in range(0, 300, 3):
        (many / "cat" / f"{number}.jpg").unlink()
        (many / "dog" / f"new {number}.jpg").touch()
    (many / "owl").mkdir()
    for number in range(20):
        (many / "owl" / f"{number}.jpg").touch()
    after = split_by_path(split_images(data, 0, WHERE))
    assert len(after) == 600 - 100 + 100 + 20
    assert {path: after[path] for path in before if path in after} == {p: s for p, s in before.items() if p in after}


def test_splits_depend_on_seed(many: Path) -> None:
    data = Data(root=str(many))
    assert split_by_path(split_images(data, 0, WHERE)) == split_by_path(split_images(data, 0, WHERE))
    assert split_by_path(split_images(data, 0, WHERE)) != split_by_path(split_images(data, 1, WHERE))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("val", "test"), [(0.001, 0.001), (0.999, 0.001), (0.001, 0.999), (0.999, 0.999)])
def test_every_split_has_every_class(fill: Fill, seed: int, val: float, test: float) -> None:
    root = fill({"a": 3, "b": 4})
    images = split_images(Data(root=str(root), val=val, test=test), seed, WHERE)
    assert [{sample.label for sample in images.splits[split]} for split in ("train", "val", "test")] == [{0, 1}] * 3


@pytest.mark.covers("data.val", "data.test")
def test_nearest_image_fills_split(many: Path) -> None:
    """With no fraction below the threshold, a split gets the image that a larger threshold would add first."""
    wide = split_by_path(split_images(Data(root=str(many), val=0.03, test=0.0001), 0, WHERE))
    narrow = split_by_path(split_images(Data(root=str(many), val=0.0001, test=0.0001), 0, WHERE))
    chosen = {path for path, split in narrow.items() if split != "train"}
    assert len(chosen) == 4
    assert chosen < {path for path, split in wide.items() if split != "train"}


def test_previous_splits_are_kept_fixed(many: Path) -> None:
    data = Data(root=str(many))
    assigned = split_by_path(split_images(data, 0, WHERE))
    previous_splits = {
        path: {"train": "val", "val": "test", "test": "train"}[split] for path, split in assigned.items()
    }
    for number in range(100):
        (many / "cat" / f"new {number}.jpg").touch()
    again = split_by_path(split_images(data, 0, WHERE, previous_splits))
    assert {path: again[path] for path in previous_splits} == previous_splits
    fresh = split_by_path(split_images(data, 0, WHERE))
    assert {path: again[path] for path in again if path not in previous_splits} == {
        path: split for path, split in fresh.items() if path not in previous_splits
    }


def test_previous_splits_count_for_class(fill: Fill) -> None:
    root = fill({"a": 3, "b": 3})
    previous_splits = {
        f"{name}/{number}.png": split for name in "ab" for number, split in enumerate(("train", "val", "test"))
    }
    data = Data(root=str(root), val=0.001, test=0.001)
    assert split_by_path(split_images(data, 0, WHERE, {**previous_splits, "a/gone.png": "val"})) == previous_splits
    fill({"a": 5})
    again = split_by_path(split_images(data, 0, WHERE, previous_splits))
    assert (again["a/3.png"], again["a/4.png"]) == ("train", "train")


def test_too_few_images_of_a_class(fill: Fill) -> None:
    root = fill({"a": 2, "b": 1, "c": 3})
    assert errors_of(root) == [
        f"{WHERE}: class 'a' has 2 images, too few for one each in test and val and train; add images",
        f"{WHERE}: class 'b' has 1 image, too few for one each in test and val and train; add images",
    ]
    root = fill({f"more {number:02}": 1 for number in range(10)})
    assert errors_of(root)[9:] == [
        f"{WHERE}: class 'more 07' has 1 image, too few for one each in test and val and train; add images",
        f"{WHERE}: 2 more classes have too few",
    ]


def test_too_few_images_with_previous_splits(fill: Fill) -> None:
    root = fill({"train/a": 3, "train/b": 3})
    previous_splits = {f"train/a/{number}.png": "train" for number in range(3)}
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(root)), 0, WHERE, previous_splits)
    assert str(error.value) == (
        f"{WHERE}: class 'a' has 0 images that were not in the earlier run, too few for one in val; add images"
    )


def test_class_errors_reported_together(fill: Fill) -> None:
    root = fill(
        {"train/a": 5, "train/b": 5, "train/c": 0, "val/a": 1, "test/b": 1, "test/c": 1, "test/x2": 1, "test": 2}
    )
    assert errors_of(root, classes=["a", "b", "y"]) == [
        f"{WHERE}: {root}/test has 2 images outside its class folders, such as '0.png'; move those to use into a class "
        "folder and the others away",
        f"{WHERE}: {root}/train has an empty class folder, 'c'; add images, or remove it",
        f"{WHERE}: {root}: test lacks the class 'a' that train has; give both the same classes",
        f"{WHERE}: {root}: train lacks the class 'x2' that test has; give both the same classes",
        f"{WHERE}: {root}: val lacks the classes 'b', 'c' that train has; give both the same classes",
        f"{WHERE}: {root}/train lacks the class 'y' of data.classes; add the folder, or correct data.classes",
        f"{WHERE}: {root}/train has the class 'c', not in data.classes; move the folder away, or correct data.classes",
    ]


def test_one_class_or_no_train(fill: Fill) -> None:
    root = fill({"val/a": 1})
    assert errors_of(root) == [f"{WHERE}: {root} has no folder train, only 'val'; add it, with a folder for each class"]
    fill({"train/a": 5})
    assert errors_of(root) == [f"{WHERE}: {root}/train has only one class, 'a'; add another"]
    (root / "train/b").mkdir()
    (root / "train/a").rename(root / "a")
    (root / "train/b").rmdir()
    (root / "a").rename(root.parent / "a")
    assert errors_of(root) == [
        f"{WHERE}: {root}/train has no class folders; put the images of each class into a folder of its own"
    ]


def test_missing_root(tmp_path: Path) -> None:
    assert errors_of(tmp_path / "gone") == [
        f"{WHERE}: {tmp_path}/gone does not exist; give a folder with train/<class>/, or with one folder a class"
    ]


def test_fingerprint_detects_changes(fill: Fill) -> None:
    root = fill({"a": 6, os.fsdecode(b"b\xff"): 6})
    data = Data(root=str(root))
    images = split_images(data, 0, WHERE)
    first = images.fingerprint()
    assert len(first) == 64
    assert split_images(data, 0, WHERE).fingerprint() == first
    assert split_images(data, 1, WHERE).fingerprint() != first
    for change in ({"label": 1}, {"weight": 0.5}, {"group": "g"}):
        val = tuple(sample._replace(**change) for sample in images.splits["val"])
        assert replace(images, splits={**images.splits, "val": val}).fingerprint() != first
    with (root / "a/0.png").open("ab") as file:
        file.write(b"x")
    longer = images.fingerprint()
    assert longer != first
    (root / "a/0.png").unlink()
    assert images.fingerprint() not in (first, longer)


def test_list_split_labels_by_class_name(fill: Fill) -> None:
    root = fill({"dog": 1, "cat": 2})
    images = list_split(root, None, ("owl", "dog", "cat"), WHERE)
    samples = tuple(
        Sample(f"{name}/{number}.png", label, path_in_class=f"{number}.png")
        for name, label, number in (("dog", 1, 0), ("cat", 2, 0), ("cat", 2, 1))
    )
    assert images == ImageDataset(root, ("owl", "dog", "cat"), {"all": samples}, str(root))
    assert list_split(root, "all", ("owl", "dog", "cat"), WHERE) == images


def test_list_split_of_split_folder(fill: Fill) -> None:
    root = fill({"train/a": 1, "train/b": 1, "test/b": 1})
    for split in ("test", None):
        assert list_split(root, split, ("b", "a"), WHERE).splits == {
            "test": (Sample("test/b/0.png", 0, path_in_class="0.png"),)
        }
    with pytest.raises(DataError) as error:
        list_split(root, "val", ("b", "a"), WHERE)
    assert str(error.value) == f"{WHERE}: {root} has no split 'val'; give one of its splits: 'test', 'train'"
    shutil.rmtree(root / "test")
    with pytest.raises(DataError) as error:
        list_split(root, None, ("b", "a"), WHERE)
    assert str(error.value) == f"{WHERE}: {root} has no split 'test'; give one of its splits: 'train'"


def test_list_split_without_splits(fill: Fill) -> None:
    root = fill({"a": 1, "b": 1})
    with pytest.raises(DataError) as error:
        list_split(root, "test", ("a", "b"), WHERE)
    assert str(error.value) == f"{WHERE}: {root} has no split 'test' and no others; use the split 'all'"


def test_list_split_unknown_classes(fill: Fill) -> None:
    root = fill({"cat": 1, "fox": 1, "wolf": 1})
    with pytest.raises(CheckpointError) as error:
        list_split(root, "all", ("cat", "dog"), WHERE)
    assert str(error.value) == (
        f"{WHERE}: {root} has the classes 'fox', 'wolf', unknown to the checkpoint; its classes are 'cat', 'dog'; "
        "rename the folders to the classes of the checkpoint, or use another checkpoint"
    )
    assert error.value.exit_code == 4


def test_list_split_folder_errors(fill: Fill, tmp_path: Path) -> None:
    root = fill({"a": 0})
    for root_path, what in {
        root: "has an empty class folder, 'a'; add images, or remove it",
        tmp_path / "gone": "does not exist; give a folder with train/<class>/, or with one folder a class",
    }.items():
        with pytest.raises(DataError) as error:
            list_split(root_path, "all", ("a", "b"), WHERE)
        assert str(error.value) == f"{WHERE}: {root_path} {what}"
