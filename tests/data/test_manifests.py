from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ftcli.data.dataset import count_images, list_split, split_images
from ftcli.data.manifests import is_manifest, read_manifest
from ftcli.data.samples import Sample
from ftcli.errors import CheckpointError, DataError, ErrorList
from ftcli.recipe.schema import Data

WHERE = "configs/x.yaml:5:9: data.root"

Fill = Callable[[Mapping[str, int]], Path]
Write = Callable[..., Path]


@pytest.fixture
def write(fill: Fill) -> Write:
    """Write data/m.csv, or a file of another name, next to images/0.png to images/19.png."""
    root = fill({"images": 20})

    def write_file(content: str | bytes, name: str = "m.csv") -> Path:
        path = root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def write_parquet(folder: Path, **columns: object) -> Path:
    parquet.write_table(pyarrow.table(columns), folder / "m.parquet")
    return folder / "m.parquet"


def rows_of(path: Path) -> list[tuple[str, str, Sample]]:
    """Return split, class and sample of each row."""
    errors = ErrorList(WHERE)
    splits = read_manifest(path, errors)
    assert errors.messages == ()
    return [
        (split, name, sample) for split, classes in splits.items() for name, rows in classes.items() for sample in rows
    ]


def errors_of(path: Path) -> list[str]:
    """Return the errors of a manifest without their location and its path."""
    with pytest.raises(DataError) as error:
        count_images(path, WHERE)
    return [message.removeprefix(f"{WHERE}: ").removeprefix(str(path)) for message in error.value.messages]


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
        ("train", "001", Sample("images/0.png", -1, 0.5, "m7", "images/0.png")),
        ("train", "1", Sample("images/3.png", -1, 1.0, "m7", "images/3.png")),
        ("val", 'say "a, b; c"', Sample("images/1.png", -1, 0.2, None, "images/1.png")),
    ]


def test_manifest_unicode_names(write: Write, tmp_path: Path) -> None:
    names = ["Кошка и пёс", "犬", "قطة", "🐈‍⬛", 'a "quoted", one', "sh' e;ll $x", "d\u0301", "two\nlines"]
    for number, name in enumerate(names):
        source = tmp_path / f"data/images/{number}.png"
        source.rename(source.with_name(f"{name}.png"))
    quoted = [name.replace('"', '""') for name in names]
    path = write("path,label\n" + "".join(f'"images/{name}.png","{name.split()[0]}"\n' for name in quoted[:-1]))
    assert {sample.path for _, _, sample in rows_of(path)} == {f"images/{name}.png" for name in names[:-1]}
    assert {name for _, name, _ in rows_of(path)} == {name.split()[0] for name in names[:-1]}
    path = write('path,label\n"images/two\nlines.png",a\nimages/gone.png,b\n')
    assert errors_of(path) == [":4: path 'images/gone.png' does not exist; correct it, or remove the row"]


def test_manifest_relative_and_absolute_paths(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f"path,label\n{tmp_path}/data/images/0.png,a\n../data/images/1.png,b\n")
    assert [sample.path for _, _, sample in rows_of(path)] == ["../data/images/1.png", f"{tmp_path}/data/images/0.png"]
    monkeypatch.chdir(tmp_path / "data/images")
    assert len(rows_of(Path("../m.csv"))) == 2
    monkeypatch.setenv("HOME", str(tmp_path / "data"))
    path = write("path,label\n~/images/0.png,a\n$HOME/images/0.png,a\n")
    assert errors_of(path) == [
        ":2: path '~/images/0.png' does not exist; correct it, or remove the row",
        ":3: path '$HOME/images/0.png' does not exist; correct it, or remove the row",
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
        ":5: path 'images/gone.png' does not exist; correct it, or remove the row",
        ":5: unknown split 'dev'; use train, val, valid, validation, test, or leave it empty",
        ":5: weight 'nan' is not a number from 0 to 1e+12; write one such as 0.5",
        ":6: path 'images/0.png' occurs twice, first in line 2; keep one",
        ":7: path './images/../images/0.png' has the label 'b', and 'a' in line 2; keep one",
        ":8: has 3 cells, but the first line has 5; correct the row",
        ":9: label 'a\\tb' contains a control character; remove it",
        ":9: weight '-1' is not a number from 0 to 1e+12; write one such as 0.5",
        ":10: label ' a' begins or ends with a space; remove it",
        ":10: group 'm ' begins or ends with a space; remove it",
        ":10: weight '' is not a number from 0 to 1e+12; write one such as 0.5",
        ":11: path 'images' is not a file; correct it, or remove the row",
        ":11: weight '1e13' is not a number from 0 to 1e+12; write one such as 0.5",
        ":12: weight '0,5' is not a number from 0 to 1e+12; write one such as 0.5",
    ]


def test_manifest_limits_errors_per_kind(write: Write) -> None:
    path = write("path,label\n" + "".join(f"gone/{number}.png,a\n" for number in range(2345)) + "images/0.png,\n")
    assert errors_of(path)[9:] == [
        ":11: path 'gone/9.png' does not exist; correct it, or remove the row",
        ":2347: label is empty; give the image's class, or remove the row",
        f"2335 more rows of {path} have an invalid path",
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
            f":2: path '{long}.png' cannot be checked (File name too long); correct it, or its permissions",
            ":3: path 'secret/0.png' cannot be checked (Permission denied); correct it, or its permissions",
            ":4: path 'images/0.png/1.png' does not exist; correct it, or remove the row",
        ]


def test_manifest_path_suggestions(write: Write, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "images/é.png") for form in ("NFC", "NFD"))
    (tmp_path / "data/images/5.png").rename(tmp_path / "data" / decomposed)
    path = write(f"path,label\nimages\\0.png,a\n images/1.png,a\n{composed},a\n")
    assert errors_of(path) == [
        ":2: path 'images\\\\0.png' does not exist; write it with slashes, 'images/0.png'",
        ":3: path ' images/1.png' does not exist; remove the space at its ends",
        f":4: path {composed!r} does not exist; the file's name is in another Unicode normalization; write the path in "
        "NFD",
    ]


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [" is empty; its first line must name the columns path and label"]),
        (b"\n \n", [" is empty; its first line must name the columns path and label"]),
        (b"path,label\n\n", [" lists no image; add a row for each image"]),
        (
            b"paths,class\n",
            [": has no column 'path'; did you mean 'paths'?", ": has no column 'label'; known: class, paths"],
        ),
        (b"path,label,path\n", [": has the column 'path' twice; keep one"]),
        (
            b"path,label,Split,weights\n",
            [
                ": has an unknown column 'Split'; rename it to 'split', or to a name that does not resemble a known "
                "column",
                ": has an unknown column 'weights'; rename it to 'weight', or to a name that does not resemble a known "
                "column",
            ],
        ),
        (b"path,label\na.png,\xe9\n", [":2: is not UTF-8 text; save it as UTF-8"]),
        (b"\xff\xfep\0a\0", [":1: is not UTF-8 text; save it as UTF-8"]),
        (b'path,label\nimages/0.png,"a"b\n', [":2: cannot be read (',' expected after '\"'); correct its quotes"]),
        (
            b'path,label\nimages/0.png,a\nimages/1.png,"a\n',
            [":3: cannot be read (unexpected end of data); correct its quotes"],
        ),
        (b"path,label\na\0.png,a\n", [":2: path 'a\\x00.png' does not exist; correct it, or remove the row"]),
    ],
)
def test_manifest_invalid_content(write: Write, content: bytes, errors: list[str]) -> None:
    assert errors_of(write(content)) == errors


def test_manifest_unreadable_file(tmp_path: Path) -> None:
    for name in ("gone.csv", "gone.parquet"):
        assert errors_of(tmp_path / name) == [
            " does not exist; give a manifest with the columns path and label, or a folder"
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
    assert {name for _, name, _ in rows_of(path)} == {"001", "犬"}


def test_parquet_errors(write: Write, tmp_path: Path) -> None:
    folder = write("not parquet at all", "m.parquet").parent
    (message,) = errors_of(folder / "m.parquet")
    assert message.startswith(" is not a readable Parquet file (")
    assert message.endswith("); write it again")
    path = write_parquet(folder, path=[1], label=[0.5], split=[True], weight=["1"], group=[[1]])
    assert errors_of(path) == [
        ": column 'path' has the type int64; make it text",
        ": column 'label' has the type double; make it text or whole numbers",
        ": column 'split' has the type bool; make it text or whole numbers",
        ": column 'weight' has the type string; make it numbers",
        ": column 'group' has the type list<element: int64>; make it text or whole numbers",
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
        ": row 3: weight 'nan' is not a number from 0 to 1e+12; write one such as 0.5",
        ": row 4: label is empty; give the image's class, or remove the row",
        ": row 4: weight '' is not a number from 0 to 1e+12; write one such as 0.5",
    ]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert errors_of(path)[0].startswith(" is not a readable Parquet file (")


def test_parquet_without_pyarrow(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("", "m.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert errors_of(path) == [" needs the package pyarrow; run pip install '.[parquet]' in the ftcli repository"]


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
        f"{WHERE}: {path} has only one class, 'a'; add another",
        f"{WHERE}: {path}: test lacks the class 'a' that train has; give both the same classes",
        f"{WHERE}: {path}: train lacks the class 'b' that test has; give both the same classes",
        f"{WHERE}: {path} lacks the class 'c' of data.classes; add images, or correct data.classes",
        f"{WHERE}: class 'a' has 1 image, too few for one each in val and train; add images",
    )
    path = write("path,label,split\nimages/0.png,a,test\n")
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE)
    assert str(error.value) == f"{WHERE}: {path} has no image in train, only in 'test'; add some"


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
    assert str(no_split.value) == f"{WHERE}: {path} has no split 'test' and no others; use the split 'all'"
    with pytest.raises(CheckpointError) as unknown:
        list_split(path, None, ("a", "x"), WHERE)
    assert str(unknown.value) == (
        f"{WHERE}: {path} has the class 'b', unknown to the checkpoint; its classes are 'a', 'x'; change the labels to "
        "the classes of the checkpoint, or use another checkpoint"
    )
    path = write("path,label,split\nimages/0.png,b,test\nimages/1.png,a,\nimages/2.png,z,train\n")
    assert [sample.path for sample in list_split(path, None, ("a", "b"), WHERE).splits["test"]] == ["images/0.png"]
    with pytest.raises(DataError) as no_val:
        list_split(path, "val", ("a", "b"), WHERE)
    assert str(no_val.value) == f"{WHERE}: {path} has no split 'val'; give one of its splits: 'test', 'train'"


def test_manifest_all_weights_zero(write: Write) -> None:
    rows = [f"images/{number}.png,{'ab'[number % 2]},0" for number in range(20)]
    path = write("path,label,weight\n" + "\n".join(rows))
    with pytest.raises(DataError) as error:
        split_images(Data(root=str(path)), 0, WHERE)
    assert str(error.value) == f"{WHERE}: {path}: every image of train has weight 0; give some a weight above 0"
