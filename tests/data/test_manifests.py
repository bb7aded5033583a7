from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ftcli.data.dataset import list_image_paths, list_split, split_images
from ftcli.data.entries import Entry
from ftcli.data.manifests import ManifestScan, is_manifest
from ftcli.errors import CheckpointError, DataError
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Fill = Callable[[Mapping[str, int]], Path]
Write = Callable[..., Path]


@pytest.fixture
def write(fill: Fill) -> Write:
    """Write data/m.csv, or a file of another name, beside images/0.png to images/19.png."""
    root = fill({"images": 20})

    def make(content: str | bytes, name: str = "m.csv") -> Path:
        path = root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def write_parquet(folder: Path, **columns: object) -> Path:
    parquet.write_table(pyarrow.table(columns), folder / "m.parquet")
    return folder / "m.parquet"


def rows_of(path: Path) -> list[tuple[str, Entry]]:
    scan = ManifestScan(path, WHERE)
    listed = scan.read()
    assert scan.errors == []
    return [(split, entry) for split, classes in listed.items() for entries in classes.values() for entry in entries]


def errors_of(path: Path) -> list[str]:
    """The faults of a manifest without what they all begin with."""
    with pytest.raises(DataError) as error:
        list_image_paths(path, WHERE)
    assert all(fault.startswith(f"{WHERE}: {path}") for fault in error.value.messages)
    return [fault.removeprefix(f"{WHERE}: {path}") for fault in error.value.messages]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_manifest_text_formats_read_alike(write: Write, bom: bytes, end: str, sign: str) -> None:
    lines = [
        "",
        sign.join(["note", "label", "path", "group", "weight", "split"]),
        sign.join(['"a, b; c\td"', "001", "images/0.png", "m7", "0.5", "train"]),
        "",
        sign.join(["", '"say ""a, b; c"""', "./images//1.png", "", "2e-1", "VALID"]),
        sign * 5,
        sign.join(["", "1", "images/3.png", "m7", "1", ""]),
    ]
    path = write(bom + end.join(lines).encode())
    assert rows_of(path) == [
        ("train", Entry("images/0.png", "images/0.png", "001", 0.5, "m7")),
        ("train", Entry("images/3.png", "images/3.png", "1", 1.0, "m7")),
        ("val", Entry("images/1.png", "images/1.png", 'say "a, b; c"', 0.2, None)),
    ]


def test_manifest_unicode_names(write: Write, tmp_path: Path) -> None:
    names = ["Кошка и пёс", "犬", "قطة", "🐈‍⬛", 'a "quoted", one', "sh' e;ll $x", "d\u0301", "two\nlines"]
    for number, name in enumerate(names):
        source = tmp_path / f"data/images/{number}.png"
        source.rename(source.with_name(f"{name}.png"))
    quoted = [name.replace('"', '""') for name in names]
    path = write("path,label\n" + "".join(f'"images/{name}.png","{name.split()[0]}"\n' for name in quoted[:-1]))
    assert {entry.path for _, entry in rows_of(path)} == {f"images/{name}.png" for name in names[:-1]}
    assert {entry.label for _, entry in rows_of(path)} == {name.split()[0] for name in names[:-1]}
    path = write('path,label\n"images/two\nlines.png",a\nimages/gone.png,b\n')
    assert errors_of(path) == [":4: path 'images/gone.png' is not there; mend it, or remove the row"]


def test_manifest_relative_and_absolute_paths(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f"path,label\n{tmp_path}/data/images/0.png,a\n../data/images/1.png,b\n")
    assert [entry.path for _, entry in rows_of(path)] == ["../data/images/1.png", f"{tmp_path}/data/images/0.png"]
    monkeypatch.chdir(tmp_path / "data/images")
    assert len(rows_of(Path("../m.csv"))) == 2
    monkeypatch.setenv("HOME", str(tmp_path / "data"))
    path = write("path,label\n~/images/0.png,a\n$HOME/images/0.png,a\n")
    assert errors_of(path) == [
        ":2: path '~/images/0.png' is not there; mend it, or remove the row",
        ":3: path '$HOME/images/0.png' is not there; mend it, or remove the row",
    ]


def test_manifest_reports_all_errors(write: Write) -> None:
    path = write(
        "path,label,split,weight,group\n"
        "images/0.png,a,train,1,m\n"
        ",a,,1,\n"
        "images/1.png,,,1,\n"
        "images/gone.png,a,dev,nan,\n"
        "images/0.png,a,,1,\n"
        "./images/../images/0.png,b,,1,\n"
        "images/2.png,a,test\n"
        'images/3.png,"a\tb",,-1,\n'
        "images/4.png, a,,,m \n"
        "images,a,,1e13,\n"
        'images/5.png,a,,"0,5",\n'
    )
    assert errors_of(path) == [
        ":3: path is empty; give the image's path, or remove the row",
        ":4: label is empty; give the image's class, or remove the row",
        ":5: path 'images/gone.png' is not there; mend it, or remove the row",
        ":5: split 'dev' is none of train, val, valid, validation, test; mend it, or leave it empty",
        ":5: weight 'nan' is no number from 0 to 1e+12; write one such as 0.5",
        ":6: path 'images/0.png' stands twice, first in line 2; keep one",
        ":7: path './images/../images/0.png' has the label 'b', and 'a' in line 2; keep one",
        ":8: has 3 cells where the first line has 5; mend the row",
        ":9: label 'a\\tb' holds a control character; take it out",
        ":9: weight '-1' is no number from 0 to 1e+12; write one such as 0.5",
        ":10: label ' a' begins or ends with a space; take it away",
        ":10: group 'm ' begins or ends with a space; take it away",
        ":10: weight '' is no number from 0 to 1e+12; write one such as 0.5",
        ":11: path 'images' is no file; mend it, or remove the row",
        ":11: weight '1e13' is no number from 0 to 1e+12; write one such as 0.5",
        ":12: weight '0,5' is no number from 0 to 1e+12; write one such as 0.5",
    ]


def test_manifest_limits_errors_per_kind(write: Write) -> None:
    path = write("path,label\n" + "".join(f"gone/{number}.png,a\n" for number in range(2345)) + "images/0.png,\n")
    faults = errors_of(path)
    assert faults[9:] == [
        ":11: path 'gone/9.png' is not there; mend it, or remove the row",
        ":2347: label is empty; give the image's class, or remove the row",
        ": 2335 more rows have a path that is not there",
    ]


def test_manifest_unreadable_path(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unreadable: Callable[[Path], AbstractContextManager[None]],
) -> None:
    long = "x" * 300
    write(f"path,label\n{long}.png,a\nsecret/0.png,a\nimages/0.png/1.png,a\n")
    monkeypatch.chdir(tmp_path / "data")
    Path("secret").mkdir()
    with unreadable(Path("secret")):
        assert errors_of(Path("m.csv")) == [
            f":2: path '{long}.png' cannot be looked for (File name too long); mend it, or its permissions",
            ":3: path 'secret/0.png' cannot be looked for (Permission denied); mend it, or its permissions",
            ":4: path 'images/0.png/1.png' is not there; mend it, or remove the row",
        ]


def test_manifest_path_suggestions(write: Write, tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "images/é.png") for form in ("NFC", "NFD"))
    (tmp_path / "data/images/5.png").rename(tmp_path / "data" / apart)
    path = write(f"path,label\nimages\\0.png,a\n images/1.png,a\n{composed},a\n")
    assert errors_of(path) == [
        ":2: path 'images\\\\0.png' is not there; write it with slashes, 'images/0.png'",
        ":3: path ' images/1.png' is not there; take away the space at its ends",
        f":4: path {composed!r} is not there; the file's name has its letters composed in another way; write it in "
        "Unicode's NFD",
    ]


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"", [" is empty; its first line must name the columns path and label"]),
        (b"\n \n", [" is empty; its first line must name the columns path and label"]),
        (b"path,label\n\n", [" lists no image; give it a row for each"]),
        (
            b"paths,class\n",
            [": has no column 'path'; did you mean 'paths'?", ": has no column 'label'; known: class, paths"],
        ),
        (b"path,label,path\n", [": has the column 'path' twice; keep one"]),
        (
            b"path,label,Split,weights\n",
            [
                ": has a column 'Split', which is not read; call it 'split', or something else",
                ": has a column 'weights', which is not read; call it 'weight', or something else",
            ],
        ),
        (b"path,label\na.png,\xe9\n", [":2: is not UTF-8 text; save it as UTF-8"]),
        (b"\xff\xfep\0a\0", [":1: is not UTF-8 text; save it as UTF-8"]),
        (b'path,label\nimages/0.png,"a"b\n', [":2: cannot be read (',' expected after '\"'); mend its quotes"]),
        (
            b'path,label\nimages/0.png,a\nimages/1.png,"a\n',
            [":3: cannot be read (unexpected end of data); mend its quotes"],
        ),
        (b"path,label\na\0.png,a\n", [":2: path 'a\\x00.png' is not there; mend it, or remove the row"]),
    ],
)
def test_manifest_invalid_content(write: Write, content: bytes, faults: list[str]) -> None:
    assert errors_of(write(content)) == faults


def test_manifest_unreadable_file(tmp_path: Path) -> None:
    for name in ("gone.csv", "gone.parquet"):
        assert errors_of(tmp_path / name) == [
            " is not there; give a manifest with the columns path and label, or a folder"
        ]
    (tmp_path / "loop.tsv").symlink_to(tmp_path / "loop.tsv")
    assert errors_of(tmp_path / "loop.tsv") == [
        " cannot be read (Too many levels of symbolic links); check its permissions"
    ]


def test_is_manifest_by_extension(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert [is_manifest(tmp_path / name) for name in ("a.csv", "a.TSV", "a.Parquet", "a.txt", "csv", "folder.csv")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_parquet_matches_csv(write: Write, tmp_path: Path) -> None:
    text = write(
        "path,label,split,weight,group\nimages/0.png,1,train,0.5,7\nimages/1.png,12,,1,\nimages/2.png,1,test,2.0,8\n"
    )
    paths = ["images/0.png", "images/1.png", "images/2.png"]
    same = {"label": [1, 12, 1], "split": ["train", None, "test"], "weight": [0.5, 1.0, 2.0], "group": [7, None, 8]}
    path = write_parquet(tmp_path / "data", picture=[b"x", b"y", b"z"], path=paths, **same)
    assert rows_of(path) == rows_of(text)
    labels = pyarrow.array(["001", "犬", "001"]).dictionary_encode()
    path = write_parquet(tmp_path / "data", path=pyarrow.array(paths, pyarrow.large_string()), label=labels)
    assert {entry.label for _, entry in rows_of(path)} == {"001", "犬"}


def test_parquet_errors(write: Write, tmp_path: Path) -> None:
    folder = write("not parquet at all", "m.parquet").parent
    (fault,) = errors_of(folder / "m.parquet")
    assert fault.startswith(" is no Parquet file that can be read (")
    assert fault.endswith("); write it anew")
    path = write_parquet(folder, path=[1], label=[0.5], split=[True], weight=["1"], group=[[1]])
    assert errors_of(path) == [
        ": the column 'path' holds int64; make it text",
        ": the column 'label' holds double; make it text or whole numbers",
        ": the column 'split' holds bool; make it text or whole numbers",
        ": the column 'weight' holds string; make it numbers",
        ": the column 'group' holds list<element: int64>; make it text or whole numbers",
    ]
    path = write_parquet(
        folder,
        path=["images/0.png", None, "images/0.png", "images/1.png"],
        label=["a", "a", "b", ""],
        weight=[1.0, 1.0, float("nan"), None],
    )
    assert errors_of(path) == [
        ": row 2: path is empty; give the image's path, or remove the row",
        ": row 3: path 'images/0.png' has the label 'b', and 'a' in row 1; keep one",
        ": row 3: weight 'nan' is no number from 0 to 1e+12; write one such as 0.5",
        ": row 4: label is empty; give the image's class, or remove the row",
        ": row 4: weight '' is no number from 0 to 1e+12; write one such as 0.5",
    ]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert errors_of(path)[0].startswith(" is no Parquet file that can be read (")


def test_parquet_without_pyarrow(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("", "m.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert errors_of(path) == [" needs the package pyarrow; pip install 'ftcli[parquet]'"]


def test_manifest_rows_without_split_go_to_train(write: Write) -> None:
    rows = [f"images/{number}.png,{'ab'[number % 2]},{'test' if number < 4 else ''}" for number in range(20)]
    path = write("path,label,split\n" + "\n".join(rows))
    images = split_images(Data(root=str(path), val=0.3, test=0.9), 0, WHERE)
    assert images.source == str(path)
    assert images.root == path.parent
    assert {sample.path for sample in images.splits["test"]} == {f"images/{number}.png" for number in range(4)}
    assert len(images.splits["train"]) + len(images.splits["val"]) == 16
    assert {sample.label for sample in images.splits["val"]} == {0, 1}


def test_manifest_validation_split_used(write: Write) -> None:
    rows = [f"images/{number}.png,{'ab'[number % 2]},{'Validation' if number < 4 else ''}" for number in range(20)]
    images = split_images(Data(root=str(write("path,label,split\n" + "\n".join(rows))), val=0.9), 0, WHERE)
    assert {split: len(samples) for split, samples in images.splits.items()} == {"train": 16, "val": 4}


def test_manifest_class_errors(write: Write) -> None:
    path = write("path,label,split\nimages/0.png,a,train\nimages/1.png,b,test\n")
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path), classes=("a", "c")), 0, WHERE)
    assert error.value.messages == (
        f"{WHERE}: {path} has one class only, 'a'; a classifier needs at least 2",
        f"{WHERE}: {path}: test lacks the class 'a' that train has; give both the same classes",
        f"{WHERE}: {path}: train lacks the class 'b' that test has; give both the same classes",
        f"{WHERE}: {path} lacks the class 'c' that data.classes names; add images of it, or mend data.classes",
        f"{WHERE}: class 'a' has 1 image, too few for one each in val and train; add images",
    )
    path = write("path,label,split\nimages/0.png,a,test\n")
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE)
    assert str(error.value) == f"{WHERE}: {path} has no image of train, only of 'test'; add some"


def test_list_split_of_manifest(write: Write) -> None:
    path = write("path,label\nimages/0.png,b\nimages/1.png,a\n")
    for split in ("all", None):
        images = list_split(path, split, ("a", "b", "c"), WHERE)
        assert [(sample.path, sample.label) for sample in images.splits["all"]] == [
            ("images/1.png", 0),
            ("images/0.png", 1),
        ]
        assert (images.root, images.classes) == (path.parent, ("a", "b", "c"))
    with pytest.raises(DataError) as no_split:
        list_split(path, "test", ("a", "b"), WHERE)
    assert str(no_split.value) == f"{WHERE}: {path} names no splits and has no split 'test'; use the split 'all'"
    with pytest.raises(CheckpointError) as unknown:
        list_split(path, None, ("a", "x"), WHERE)
    assert str(unknown.value) == (
        f"{WHERE}: {path} has the class 'b' that the checkpoint does not know; its classes are 'a', 'x'"
    )
    path = write("path,label,split\nimages/0.png,b,test\nimages/1.png,a,\nimages/2.png,z,train\n")
    assert [sample.path for sample in list_split(path, None, ("a", "b"), WHERE).splits["test"]] == ["images/0.png"]
    with pytest.raises(DataError) as no_val:
        list_split(path, "val", ("a", "b"), WHERE)
    assert str(no_val.value) == f"{WHERE}: {path} has no split 'val'; give one that it has: 'test', 'train'"


def test_manifest_all_weights_zero(write: Write) -> None:
    rows = [f"images/{number}.png,{'ab'[number % 2]},0" for number in range(20)]
    path = write("path,label,weight\n" + "\n".join(rows))
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE)
    assert str(error.value) == f"{WHERE}: {path}: every image of train weighs 0; give some a weight above 0"
