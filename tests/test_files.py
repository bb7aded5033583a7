"""Tests of atomic writes, output paths and locks."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.errors import RecipeError, RunError
from ftcli.files import (
    atomic_open,
    atomic_write,
    check_output_path,
    check_writable,
    commit_dir,
    commit_file,
    describe_write_error,
    hash_file,
    lock_dir,
    make_dir,
)


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write(target, "old")
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_keeps_old_file_on_failure(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        atomic_write(taken, b"x")
    assert str(caught.value) == f"{taken}: cannot be written (Is a directory); check the folder and its permissions"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_describe_write_error_reports_full_disk(tmp_path: Path) -> None:
    message = describe_write_error(tmp_path / "last.pt", 3_000_000, OSError(errno.ENOSPC, "No space left on device"))
    assert re.fullmatch(
        r".*/last\.pt: the disk is full: 3\.0 MB needed, [0-9.]+ MB free; free some space \(files saved before are "
        r"intact\)",
        message,
    )
    message = describe_write_error(tmp_path / "a.csv", 0, OSError(errno.ENOSPC, "No space left on device"))
    assert re.fullmatch(
        r".*/a\.csv: the disk is full: [0-9.]+ MB free; free some space \(files saved before are intact\)", message
    )


def test_check_output_path_rejects_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_output_path(tmp_path / "file", "--out")
    check_output_path(tmp_path / "free", "--out")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for taken in (tmp_path, Path(), Path(".."), tmp_path / "link", tmp_path / "dangling", tmp_path / "pipe"):
        with pytest.raises(RecipeError) as caught:
            check_output_path(taken, "--out")
        assert str(caught.value) == f"--out: {taken} is a folder, link or device; give the name of a file"


def test_check_writable_requires_suffix_and_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.PNG", "--plot", [".png"])
    for path, message in (
        (tmp_path / "out.jpg", f"--plot: {tmp_path}/out.jpg does not end in .png or .pdf; give a path that does"),
        (tmp_path / "no/out.png", f"--plot: the folder {tmp_path}/no does not exist; create it, or give another path"),
    ):
        with pytest.raises(RecipeError) as caught:
            check_writable(path, "--plot", [".png", ".pdf"])
        assert str(caught.value) == message


def test_make_dir_reports_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError) as caught:
        make_dir(tmp_path / "file" / "run")
    assert str(caught.value) == (
        f"{tmp_path}/file/run: cannot be written (Not a directory); give a writable folder with --out"
    )


def test_lock_dir_excludes_other_process(tmp_path: Path) -> None:
    holder = (
        "import sys, pathlib; from ftcli.files import lock_dir\n"
        f"with lock_dir(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecipeError) as caught, lock_dir(tmp_path):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: is in use by another ftcli (process {process.pid}); wait until it ends, or give another --out"
        )
        process.kill()
    with lock_dir(tmp_path):
        pass


def test_commit_dir_renames(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("x")
    commit_dir(tmp_path / "made", tmp_path / "final")
    assert hash_file(tmp_path / "final" / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_atomic_open_replaces_on_success_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_open(path) as file:
        file.write(f"half {1 // file.tell()}")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.csv", "old")]
    with atomic_open(path) as file:
        file.write("a\r\n\udcff")
        file.flush()
        assert path.read_text() == "old"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.csv", b"a\r\n\\udcff")]
    with pytest.raises(RunError) as error, atomic_open(tmp_path / "no/a.csv"):
        pass
    assert str(error.value) == (
        f"{tmp_path}/no/a.csv: cannot be written (No such file or directory); check the folder and its permissions"
    )


def test_commit_file_renames_or_keeps(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("x")
    commit_file(tmp_path / "made", tmp_path / "final")
    assert hash_file(tmp_path / "final", "md5") == "9dd4e461268c8034f5c8564e155c67a6"
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError) as caught:
        commit_file(tmp_path / "final", tmp_path / "taken")
    assert str(caught.value) == (
        f"{tmp_path}/taken: cannot be written (Is a directory); check the folder and its permissions"
    )
    assert (tmp_path / "final").read_text() == "x"
