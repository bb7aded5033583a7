from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ftcli.data.folders import FolderScan, format_names

WHERE = "configs/x.yaml:5:9: data.root"


def scan_all(root: Path) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[str]]:
    scan = FolderScan(root, WHERE)
    return {split: scan.list_classes(folder) for split, folder in scan.find_splits().items()}, scan.errors


def test_scan_finds_images_at_any_depth(fill: Callable[[Mapping[str, int]], Path]) -> None:
    root = fill({"cat": 2, "cat/indoors/dark": 1, "dog": 1})
    for name in ("cat/.DS_Store", "cat/._0.png", "cat/notes.txt", ".hidden.png", "labels.csv"):
        (root / name).write_text("x")
    (root / ".cache").mkdir()
    (root / "dog" / ".thumbs").mkdir()
    (root / "dog" / ".thumbs" / "0.png").write_text("x")
    layout, faults = scan_all(root)
    assert layout == {"all": {"cat": ("cat/0.png", "cat/1.png", "cat/indoors/dark/0.png"), "dog": ("dog/0.png",)}}
    assert faults == []


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_scan_split_aliases(fill: Callable[[Mapping[str, int]], Path], name: str) -> None:
    root = fill({"Train/a": 1, f"{name}/a": 1, "test/a": 1})
    layout, faults = scan_all(root)
    assert layout == {
        "train": {"a": ("Train/a/0.png",)},
        "val": {"a": (f"{name}/a/0.png",)},
        "test": {"a": ("test/a/0.png",)},
    }
    assert faults == []


def test_scan_test_folder_alone_is_a_split(
    fill: Callable[[Mapping[str, int]], Path],
) -> None:
    root = fill({"test/a": 1})
    assert scan_all(root)[0] == {"test": {"a": ("test/a/0.png",)}}
    fill({"exam": 1})
    assert scan_all(root)[0] == {"all": {"exam": ("exam/0.png",), "test": ("test/a/0.png",)}}


def test_scan_follows_links_without_cycles(fill: Callable[[Mapping[str, int]], Path], tmp_path: Path) -> None:
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
    layout, faults = scan_all(root)
    assert layout["all"] == {
        "cat": ("cat/0.png", "cat/link.png", "cat/linked/far.png", "cat/nowhere.png"),
        "dog": ("dog/0.png",),
        "owl": ("owl/far.png",),
    }
    assert faults == []


def test_scan_unicode_and_non_utf8_names(tmp_path: Path) -> None:
    root = tmp_path / "data"
    odd = os.fsdecode(b"caf\xe9 \xff")
    for name in ("Кошка и пёс", "犬", odd, "a\\b"):
        (root / name).mkdir(parents=True)
        (root / name / "картинка 1.JPG").touch()
    layout, faults = scan_all(root)
    assert layout["all"] == {name: (f"{name}/картинка 1.JPG",) for name in ("Кошка и пёс", "犬", odd, "a\\b")}
    assert faults == []


def test_scan_missing_or_invalid_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    layout = "; give a folder with train/<class>/, or with one folder a class"
    faults = [scan_all(tmp_path / name)[1] for name in ("gone", "file", "empty", "loop")]
    assert faults == [
        [f"{WHERE}: {tmp_path}/gone is not there{layout}"],
        [f"{WHERE}: {tmp_path}/file is no folder and no manifest (.csv, .tsv, .parquet){layout}"],
        [f"{WHERE}: {tmp_path}/empty has no class folders; put the images of each class into a folder of its own"],
        [f"{WHERE}: {tmp_path}/loop cannot be read (Too many levels of symbolic links); check its permissions"],
    ]


def test_scan_reports_images_outside_classes(fill: Callable[[Mapping[str, int]], Path]) -> None:
    root = fill({"train": 2, "train/a": 1, "": 1})
    assert scan_all(root)[1] == [
        f"{WHERE}: {root} has 1 image beside its split folders, such as '0.png', which would belong to no class; "
        "move what is to be used into a class folder and the rest away",
        f"{WHERE}: {root}/train has 2 images beside its class folders, such as '0.png', which would belong to no "
        "class; move what is to be used into a class folder and the rest away",
    ]


def test_scan_reports_no_class_folders(fill: Callable[[Mapping[str, int]], Path]) -> None:
    root = fill({"": 3})
    assert scan_all(root)[1] == [
        f"{WHERE}: {root} has no class folders; put the images of each class into a folder of its own"
    ]


def test_scan_reports_non_split_folders(fill: Callable[[Mapping[str, int]], Path]) -> None:
    root = fill({"train/a": 1, "car": 1, "plane": 1, "val/a": 1, "valid/a": 1})
    assert scan_all(root)[1] == [
        f"{WHERE}: {root} is split, for it has train, but 'car', 'plane' beside it are no splits; move what is no "
        f"split out of {root}, or, if train is a class, move every class into {root}/train",
        f"{WHERE}: {root} has 'val', 'valid', which all stand for val; keep one",
    ]


def test_scan_reports_empty_classes(fill: Callable[[Mapping[str, int]], Path]) -> None:
    root = fill({"train/a": 1, "train/b": 0, "test/a": 0, "test/b": 0})
    (root / "train/b/notes.txt").touch()
    assert scan_all(root)[1] == [
        f"{WHERE}: {root}/test has 2 empty class folders, 'a', 'b'; add images, or remove what is empty",
        f"{WHERE}: {root}/train has an empty class folder, 'b'; add images, or remove what is empty",
    ]


def test_scan_unreadable_folder_is_not_empty(
    unreadable: Callable[[Path], AbstractContextManager[None]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for folder in ("a", "b/deep"):
            (root / folder).mkdir(parents=True)
        (root / "a/0.png").touch()
        with unreadable(root / "b/deep"):
            faults = scan_all(root)[1]
    assert faults == [f"{WHERE}: {root}/b/deep cannot be read (Permission denied); check its permissions"]


def test_format_names_truncates() -> None:
    assert format_names(["a", "b c"]) == "'a', 'b c'"
    assert format_names(map(str, range(5)), max_names=2) == "'0', '1' and 3 more"
