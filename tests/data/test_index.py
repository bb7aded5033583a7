from __future__ import annotations

import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ftcli.data.dataset import list_split, split_images
from ftcli.data.index import index_root
from ftcli.errors import DataError, ErrorList
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Fill = Callable[[Mapping[str, int]], Path]


def index_paths(root: Path) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[str]]:
    """Return the paths in a folder by split and class, and the errors."""
    index = index_root(root, ErrorList(WHERE))
    paths = {
        split: {name: tuple(sample.path for sample in samples) for name, samples in classes.items()}
        for split, classes in index.splits.items()
    }
    return paths, list(index.errors.messages)


def test_index_folder_finds_images_at_any_depth(fill: Fill) -> None:
    root = fill({"cat": 2, "cat/indoors/dark": 1, "dog": 1})
    for name in ("cat/.DS_Store", "cat/._0.png", "cat/notes.txt", ".hidden.png", "labels.csv"):
        (root / name).write_text("x")
    (root / ".cache").mkdir()
    (root / "dog" / ".thumbs").mkdir()
    (root / "dog" / ".thumbs" / "0.png").write_text("x")
    layout, errors = index_paths(root)
    assert layout == {"all": {"cat": ("cat/0.png", "cat/1.png", "cat/indoors/dark/0.png"), "dog": ("dog/0.png",)}}
    assert errors == []


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_index_folder_split_aliases(fill: Fill, name: str) -> None:
    root = fill({"Train/a": 1, f"{name}/a": 1, "test/a": 1})
    layout, errors = index_paths(root)
    assert layout == {
        "train": {"a": ("Train/a/0.png",)},
        "val": {"a": (f"{name}/a/0.png",)},
        "test": {"a": ("test/a/0.png",)},
    }
    assert errors == []


def test_index_folder_test_folder_alone_is_a_split(
    fill: Fill,
) -> None:
    root = fill({"test/a": 1})
    assert index_paths(root)[0] == {"test": {"a": ("test/a/0.png",)}}
    fill({"exam": 1})
    assert index_paths(root)[0] == {"all": {"exam": ("exam/0.png",), "test": ("test/a/0.png",)}}


def test_index_folder_follows_links_without_cycles(fill: Fill, tmp_path: Path) -> None:
    root = fill({"cat": 1, "dog": 1})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes((root / "cat/0.png").read_bytes())
    (root / "cat/linked").symlink_to(elsewhere)
    (root / "cat/link.png").symlink_to(elsewhere / "far.png")
    (root / "cat/nowhere.png").symlink_to(elsewhere / "gone.png")
    for name, target in {"up": root / "cat", "top": root, "itself": root / "cat/itself"}.items():
        (root / "cat" / name).symlink_to(target)
    (elsewhere / "back").symlink_to(elsewhere)
    (root / "owl").symlink_to(elsewhere)
    layout, errors = index_paths(root)
    assert layout["all"] == {
        "cat": ("cat/0.png", "cat/link.png", "cat/linked/far.png", "cat/nowhere.png"),
        "dog": ("dog/0.png",),
        "owl": ("owl/far.png",),
    }
    assert errors == []


def test_index_folder_unicode_and_non_utf8_names(tmp_path: Path) -> None:
    root = tmp_path / "data"
    odd = os.fsdecode(b"caf\xe9 \xff")
    for name in ("Кошка и пёс", "犬", odd, "a\\b"):
        (root / name).mkdir(parents=True)
        (root / name / "картинка 1.JPG").touch()
    layout, errors = index_paths(root)
    assert layout["all"] == {name: (f"{name}/картинка 1.JPG",) for name in ("Кошка и пёс", "犬", odd, "a\\b")}
    assert errors == []


def test_index_folder_missing_or_invalid_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    layout = "; give a folder with train/<class>/, or with one folder a class"
    errors = [index_paths(tmp_path / name)[1] for name in ("gone", "file", "empty", "loop")]
    assert errors == [
        [f"{WHERE}: {tmp_path}/gone does not exist{layout}"],
        [f"{WHERE}: {tmp_path}/file is not a folder or a manifest (.csv, .tsv, .parquet){layout}"],
        [f"{WHERE}: {tmp_path}/empty has no class folders; put the images of each class into a folder of its own"],
        [f"{WHERE}: {tmp_path}/loop cannot be read (Too many levels of symbolic links); check its permissions"],
    ]


def test_index_folder_reports_images_outside_classes(fill: Fill) -> None:
    root = fill({"train": 2, "train/a": 1, "": 1})
    assert index_paths(root)[1] == [
        f"{WHERE}: {root} has 1 image outside its split folders, such as '0.png'; move those to use into a class "
        "folder and the others away",
        f"{WHERE}: {root}/train has 2 images outside its class folders, such as '0.png'; move those to use into a "
        "class folder and the others away",
    ]


def test_index_folder_reports_no_class_folders(fill: Fill) -> None:
    root = fill({"": 3})
    assert index_paths(root)[1] == [
        f"{WHERE}: {root} has no class folders; put the images of each class into a folder of its own"
    ]


def test_index_folder_reports_non_split_folders(fill: Fill) -> None:
    root = fill({"train/a": 1, "car": 1, "plane": 1, "val/a": 1, "valid/a": 1})
    assert index_paths(root)[1] == [
        f"{WHERE}: {root} has the split 'train', but 'car', 'plane' are not splits; move them out of {root}, or, if "
        f"train is a class, move every class into {root}/train",
        f"{WHERE}: {root} has 'val', 'valid', which all mean val; keep one",
    ]
    shutil.rmtree(root / "valid")
    shutil.rmtree(root / "plane")
    assert index_paths(root)[1] == [
        f"{WHERE}: {root} has the split 'train', but 'car' is not a split; move it out of {root}, or, if train is a "
        f"class, move every class into {root}/train"
    ]


def test_index_folder_reports_empty_classes(fill: Fill) -> None:
    root = fill({"train/a": 1, "train/b": 0, "test/a": 0, "test/b": 0})
    (root / "train/b/notes.txt").touch()
    assert index_paths(root)[1] == [
        f"{WHERE}: {root}/test has 2 empty class folders, 'a', 'b'; add images, or remove them",
        f"{WHERE}: {root}/train has an empty class folder, 'b'; add images, or remove it",
    ]


def test_index_folder_unreadable_folder_is_not_empty(
    unreadable: Callable[[Path], AbstractContextManager[None]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for folder in ("a", "b/deep"):
            (root / folder).mkdir(parents=True)
        (root / "a/0.png").touch()
        with unreadable(root / "b/deep"):
            errors = index_paths(root)[1]
    assert errors == [f"{WHERE}: {root}/b/deep cannot be read (Permission denied); check its permissions"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Fill) -> Path:
    """An empty current folder; `fill` creates its folder data."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors_of(**data: object) -> list[str]:
    """Return the errors of a data set without their location."""
    with pytest.raises(DataError) as error:
        split_images(Data.model_validate(data), 0, WHERE)
    assert all(message.startswith(f"{WHERE}: ") for message in error.value.messages)
    return [message.removeprefix(f"{WHERE}: ") for message in error.value.messages]


@pytest.mark.covers("data.root")
def test_index_joins_roots_relative_to_cwd(here: Path, fill: Fill) -> None:
    fill({"old/a": 4, "old/b": 4, "more": 4})
    (here / "data/more/list.csv").write_text("path,label\n0.png,b\n1.png,c\n2.png,c\n../more/3.png,c\n")
    images = split_images(Data(root=("data/old", str(here / "data/more/list.csv"))), 0, WHERE)
    assert (images.root, images.classes) == (Path(), ("a", "b", "c"))
    assert images.source == f"data/old, {here}/data/more/list.csv"
    samples = {sample.path: images.classes[sample.label] for split in images.splits.values() for sample in split}
    more = f"{here}/data/more"
    assert samples == {
        **{f"data/old/{name}/{number}.png": name for name in "ab" for number in range(4)},
        **{f"{more}/0.png": "b", f"{more}/1.png": "c", f"{more}/2.png": "c", f"{more}/../more/3.png": "c"},
    }
    assert all((images.root / path).is_file() for path in samples)


def test_index_joins_splits_of_roots(here: Path, fill: Fill) -> None:
    fill({"x/train/a": 9, "x/test/b": 1, "y/train/b": 9, "y/test/a": 2})
    images = split_images(Data(root=("data/x", "data/y")), 0, WHERE)
    assert sorted(sample.path for sample in images.splits["test"]) == [
        "data/x/test/b/0.png",
        "data/y/test/a/0.png",
        "data/y/test/a/1.png",
    ]


def test_splits_stable_when_root_is_added(here: Path, fill: Fill) -> None:
    fill({"x/a": 60, "x/b": 60, "y/a": 60, "y/c": 60})
    alone = split_images(Data(root="data/x"), 0, WHERE)
    both = split_images(Data(root=("data/x", "data/y")), 0, WHERE)
    for split, samples in alone.splits.items():
        assert {f"data/x/{sample.path}" for sample in samples} == {
            sample.path for sample in both.splits[split] if sample.path.startswith("data/x/")
        }


def test_index_errors_of_several_roots(here: Path, fill: Fill) -> None:
    fill({"x/train/a": 3, "x/train/b": 3, "y/a": 3, "y/b": 3, "z/a": 0})
    (here / "m.csv").write_text("path,label\ngone.png,a\n")
    assert errors_of(root=["gone", "m.csv", "data/z", "g.csv"]) == [
        "gone does not exist; give a folder with train/<class>/, or with one folder a class",
        "m.csv:2: path 'gone.png' does not exist; correct it, or remove the row",
        "data/z has an empty class folder, 'a'; add images, or remove it",
        "g.csv does not exist; give a manifest with the columns path and label, or a folder",
    ]
    assert errors_of(root=["data/x", "data/y"]) == [
        "data/x has splits and data/y has none; give every root splits, or none"
    ]
    (here / "m.csv").write_text("path,label\ndata/y/a/0.png,a\n" + "".join(f"data/y/b/{n}.png,a\n" for n in range(3)))
    (here / "n.csv").write_text(f"path,label\n{here}/data/y/a/0.png,a\n")
    assert errors_of(root=["data/y", "m.csv", "n.csv"]) == [
        *(f"data/y/{path}.png is in data/y and in m.csv; keep it in one" for path in ("a/0", "b/0", "b/1", "b/2")),
        f"{here}/data/y/a/0.png is in data/y and in n.csv; keep it in one",
    ]
    fill({"w/a": 12})
    assert errors_of(root=["data/w", "./data/w"])[9:] == [
        "data/w/a/7.png is in data/w and in ./data/w; keep it in one",
        "2 more images are in two roots",
    ]


def test_index_errors_name_all_roots(here: Path, fill: Fill) -> None:
    fill({"x/a": 3, "y/b": 3})
    assert errors_of(root=["data/x", "data/y"], classes=["a", "c"]) == [
        "data/x, data/y lacks the class 'c' of data.classes; add images, or correct data.classes",
        "data/x, data/y has the class 'b', not in data.classes; remove the images, or correct data.classes",
    ]


def test_class_names_unicode_normalization(here: Path, fill: Fill) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    message = "the classes 'cafe\\u0301' and 'caf\\xe9' differ only in Unicode normalization; give both the same name"
    fill({f"x/train/{composed}": 3, "x/train/b": 3, f"x/test/{decomposed}": 1, "x/test/b": 1, "y/b": 3})
    assert errors_of(root="data/x")[0] == message
    fill({f"y/{decomposed}": 3})
    assert errors_of(root="data/y", classes=["b", composed])[0] == message
    with pytest.raises(DataError) as error:
        list_split(Path("data/y"), None, ("b", composed), "--data")
    assert str(error.value) == f"--data: {message}"
    (here / "m.csv").write_text(f"path,label\ndata/y/b/0.png,{composed}\ndata/y/b/1.png,{decomposed}\n")
    assert errors_of(root="m.csv")[0] == message


def test_class_name_control_character(here: Path, fill: Fill) -> None:
    fill({"a\nb": 3, "c": 3})
    assert errors_of(root="data") == ["class 'a\\nb' contains a control character; rename it"]


@pytest.mark.covers("data.group")
def test_groups_from_path_pattern(here: Path, fill: Fill) -> None:
    root = fill({f"{name}/m{number}": 2 for name in "ab" for number in range(10)})
    images = split_images(Data(root="data", group="^(m[0-9]+)/"), 0, WHERE)
    splits_by_group: dict[str, set[str]] = {}
    for split, samples in images.splits.items():
        for sample in samples:
            assert sample.group == sample.path.split("/")[1]
            splits_by_group.setdefault(sample.group, set()).add(split)
    assert len(splits_by_group) == 10
    assert all(len(splits) == 1 for splits in splits_by_group.values())
    rows = "".join(f"data/{path.relative_to(root)},{path.parts[-3]}\n" for path in sorted(root.rglob("*.png")))
    (here / "m.csv").write_text(f"path,label\n{rows}")
    named = split_images(Data(root="m.csv", group="/(m[0-9]+)/[^/]*$"), 0, WHERE)
    assert [{(s.path, s.group) for s in named.splits[split]} for split in named.splits] == [
        {(f"data/{s.path}", s.group) for s in images.splits[split]} for split in images.splits
    ]


def test_groups_from_path_pattern_errors(here: Path, fill: Fill) -> None:
    fill({"a/m1": 2, "a/x": 2, "b": 1, "c/m": 1})
    assert errors_of(root="data", group="^m([0-9]*)", val=0.5)[0] == (
        "data.group: '^m([0-9]*)' matches no group in 'x/0.png' and 3 more; fix the pattern so that every image has one"
    )
    fill({"y/a": 3, "y/b": 3})
    assert errors_of(root="data/y", group="([01])") == [  # and no errors of groups
        "data.group: '([01])' matches no group in '2.png' and 1 more; fix the pattern so that every image has one"
    ]
    (here / "m.csv").write_text("path,label,group\ndata/a/m1/0.png,a,g\ndata/b/0.png,b,\n")
    assert "data.group is set, and m.csv has a column group; keep one of them" in errors_of(root="m.csv", group="(m)")
