from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ftcli.data.dataset import list_split, split_images
from ftcli.errors import DataError
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Fill = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Fill) -> Path:
    """The current folder, with nothing in it yet; `fill` fills its folder data."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors_of(**data: object) -> list[str]:
    """The faults of a recipe's images without what they all begin with."""
    with pytest.raises(DataError) as error:
        split_images(Data.model_validate(data), 0, WHERE)
    assert all(fault.startswith(f"{WHERE}: ") for fault in error.value.messages)
    return [fault.removeprefix(f"{WHERE}: ") for fault in error.value.messages]


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
        "gone is not there; give a folder with train/<class>/, or with one folder a class",
        "m.csv:2: path 'gone.png' is not there; mend it, or remove the row",
        "g.csv is not there; give a manifest with the columns path and label, or a folder",
        "data/z has an empty class folder, 'a'; add images, or remove what is empty",
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
        "data/x, data/y lacks the class 'c' that data.classes names; add images of it, or mend data.classes",
        "data/x, data/y has the class 'b' beyond data.classes; take its images out, or mend data.classes",
    ]


def test_class_names_unicode_normalization(here: Path, fill: Fill) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    sentence = (
        "the classes 'cafe\\u0301' and 'caf\\xe9' differ only in how Unicode composes their letters; give both one name"
    )
    fill({f"x/train/{composed}": 3, "x/train/b": 3, f"x/test/{apart}": 1, "x/test/b": 1, "y/b": 3})
    assert errors_of(root="data/x")[0] == sentence
    fill({f"y/{apart}": 3})
    assert errors_of(root="data/y", classes=["b", composed])[0] == sentence
    with pytest.raises(DataError) as error:
        list_split(Path("data/y"), None, ("b", composed), "--data")
    assert str(error.value) == f"--data: {sentence}"
    (here / "m.csv").write_text(f"path,label\ndata/y/b/0.png,{composed}\ndata/y/b/1.png,{apart}\n")
    assert errors_of(root="m.csv")[0] == sentence


def test_class_name_control_character(here: Path, fill: Fill) -> None:
    fill({"a\nb": 3, "c": 3})
    assert errors_of(root="data") == ["the class 'a\\nb' holds a control character; rename it"]


@pytest.mark.covers("data.group")
def test_groups_from_path_pattern(here: Path, fill: Fill) -> None:
    root = fill({f"{name}/m{number}": 2 for name in "ab" for number in range(10)})
    images = split_images(Data(root="data", group="^(m[0-9]+)/"), 0, WHERE)
    homes: dict[str, set[str]] = {}
    for split, samples in images.splits.items():
        for sample in samples:
            assert sample.group == sample.path.split("/")[1]
            homes.setdefault(sample.group, set()).add(split)
    assert len(homes) == 10
    assert all(len(splits) == 1 for splits in homes.values())
    rows = "".join(f"data/{path.relative_to(root)},{path.parts[-3]}\n" for path in sorted(root.rglob("*.png")))
    (here / "m.csv").write_text(f"path,label\n{rows}")
    named = split_images(Data(root="m.csv", group="/(m[0-9]+)/[^/]*$"), 0, WHERE)
    assert [{(s.path, s.group) for s in named.splits[split]} for split in named.splits] == [
        {(f"data/{s.path}", s.group) for s in images.splits[split]} for split in images.splits
    ]


def test_groups_from_path_pattern_errors(here: Path, fill: Fill) -> None:
    fill({"a/m1": 2, "a/x": 2, "b": 1, "c/m": 1})
    assert errors_of(root="data", group="^m([0-9]*)", val=0.5)[0] == (
        "data.group: '^m([0-9]*)' finds no group in 'x/0.png' and in 3 more paths; mend it so that every image has one"
    )
    fill({"y/a": 3, "y/b": 3})
    assert errors_of(root="data/y", group="([01])") == [  # no more of groups, which nobody has
        "data.group: '([01])' finds no group in '2.png' and in 1 more path; mend it so that every image has one"
    ]
    (here / "m.csv").write_text("path,label,group\ndata/a/m1/0.png,a,g\ndata/b/0.png,b,\n")
    assert "data.group is set, and m.csv has a column group; keep one of them" in errors_of(root="m.csv", group="(m)")
