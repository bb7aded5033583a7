"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.errors import RecipeError, RunError
from ftcli.storage import (
    check_place,
    digest_file,
    explain_failure,
    hold_folder,
    make_folder,
    publish_file,
    publish_folder,
    replace_file,
    replace_gradually,
)


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    replace_file(target, "old")
    replace_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        replace_file(taken, b"x")
    assert str(caught.value) == f"{taken}: cannot be written (Is a directory); check the folder and its permissions"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_is_told_with_what_is_needed_and_free(tmp_path: Path) -> None:
    told = explain_failure(tmp_path / "last.pt", 3_000_000, OSError(errno.ENOSPC, "No space left on device"))
    assert told.startswith(f"{tmp_path}/last.pt: the disk is full: 3.0 MB are needed and ")
    assert told.endswith("; make room; what was saved before is whole")
    told = explain_failure(tmp_path / "told.csv", 0, OSError(errno.ENOSPC, "No space left on device"))
    assert re.fullmatch(
        r".*/told\.csv: the disk is full: [0-9.]+ MB are free; make room; what was saved before is whole", told
    )


def test_a_place_is_a_plain_files_or_free(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "file", "--out")
    check_place(tmp_path / "free", "--out")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for taken in (tmp_path, Path(), Path(".."), tmp_path / "link", tmp_path / "broken", tmp_path / "pipe"):
        with pytest.raises(RecipeError) as caught:
            check_place(taken, "--out")
        assert str(caught.value) == f"--out: {taken} is a folder, link or device; give the name of a file"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError) as caught:
        make_folder(tmp_path / "file" / "run")
    assert str(caught.value) == (
        f"{tmp_path}/file/run: cannot be written (Not a directory); give a folder that you may write to, with --out"
    )


def test_a_held_folder_is_refused_to_another_process_until_it_ends(tmp_path: Path) -> None:
    holder = (
        "import sys, pathlib; from ftcli.storage import hold_folder\n"
        f"with hold_folder(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecipeError) as caught, hold_folder(tmp_path):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: is in use by another ftcli (process {process.pid}); wait until it ends, or give another --out"
        )
        process.kill()
    with hold_folder(tmp_path):
        pass


def test_a_folder_is_published_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("x")
    publish_folder(tmp_path / "made", tmp_path / "final")
    assert digest_file(tmp_path / "final" / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_a_file_that_is_written_little_by_little(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_gradually(path) as file:
        file.write(f"half {1 // file.tell()}")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.csv", "old")]
    with replace_gradually(path) as file:
        file.write("a\r\n\udcff")
        file.flush()
        assert path.read_text() == "old"
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("a.csv", b"a\r\n\\udcff")]
    with pytest.raises(RunError) as error, replace_gradually(tmp_path / "no/a.csv"):
        pass
    assert str(error.value) == (
        f"{tmp_path}/no/a.csv: cannot be written (No such file or directory); check the folder and its permissions"
    )


def test_a_file_is_published_in_one_step_or_stays(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("x")
    publish_file(tmp_path / "made", tmp_path / "final")
    assert digest_file(tmp_path / "final", "md5") == "9dd4e461268c8034f5c8564e155c67a6"
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError) as caught:
        publish_file(tmp_path / "final", tmp_path / "taken")
    assert str(caught.value) == (
        f"{tmp_path}/taken: cannot be written (Is a directory); check the folder and its permissions"
    )
    assert (tmp_path / "final").read_text() == "x"
