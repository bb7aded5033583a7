"""File hashes match the current bytes and are computed once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from ftcli.caching import file_hashes
from ftcli.caching.file_hashes import count_hashes, hash_files
from ftcli.errors import RunError
from tests.caching.conftest import StartProcess


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of files whose digests are stored immediately, not after 2 s."""
    monkeypatch.setattr(file_hashes, "_MIN_AGE_NS", 0)
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for number in range(5):
        (folder / f"a/{number}.jpg").write_bytes(bytes([number]) * 1000)
    return folder


NAMES = [f"a/{number}.jpg" for number in range(5)]


def compute_hashes(folder: Path, names: list[str]) -> list[bytes | None]:
    return [hashlib.sha256((folder / name).read_bytes()).digest() for name in names]


@pytest.fixture
def hashed_paths(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the list of files that were hashed."""
    hashed: list[bytes] = []
    real = file_hashes._hash_file

    def hash_file(path: bytes) -> object:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(file_hashes, "_hash_file", hash_file)
    return hashed


def test_hash_files_hashes_each_file_once(folder: Path, hashed_paths: list[bytes], cache: Path) -> None:
    for _ in range(2):
        assert hash_files(folder, [*NAMES, NAMES[0]]) == compute_hashes(folder, [*NAMES, NAMES[0]])
    assert len(hashed_paths) == 5
    assert hash_files(Path("elsewhere"), [str(folder / name) for name in NAMES]) == compute_hashes(folder, NAMES)
    assert len(hashed_paths) == 5
    assert count_hashes(cache) == 5
    assert hash_files(folder, []) == []


def test_hash_files_handles_many_files(folder: Path, hashed_paths: list[bytes]) -> None:
    names = [f"{number}" for number in range(1100)]
    for name in names:
        (folder / name).write_text(name)
    for _ in range(2):
        assert hash_files(folder, names) == [hashlib.sha256(name.encode()).digest() for name in names]
    assert len(hashed_paths) == 1100


def test_hash_files_notices_same_size_and_mtime(folder: Path, hashed_paths: list[bytes]) -> None:
    before = hash_files(folder, NAMES)
    path = folder / NAMES[2]
    result = path.stat()
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(result.st_atime_ns, result.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (result.st_size, result.st_mtime_ns)
    after = hash_files(folder, NAMES)
    assert after == compute_hashes(folder, NAMES)
    assert after[2] != before[2]
    assert hashed_paths[5:] == [os.fsencode(path)]


def test_hash_files_notices_replaced_file(folder: Path, hashed_paths: list[bytes]) -> None:
    hash_files(folder, NAMES)
    (folder / NAMES[0]).rename(folder / NAMES[1])
    (folder / NAMES[2]).unlink()
    (folder / NAMES[2]).symlink_to("3.jpg")
    assert hash_files(folder, NAMES[1:]) == compute_hashes(folder, NAMES[1:])
    assert len(hashed_paths) == 7
    assert hash_files(folder, NAMES[:1]) == [None]


def test_hash_files_does_not_store_recent_file(
    folder: Path, hashed_paths: list[bytes], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(file_hashes, "_MIN_AGE_NS", 10**9)
    for _ in range(2):
        assert hash_files(folder, NAMES[:2]) == compute_hashes(folder, NAMES[:2])
    assert len(hashed_paths) == 4
    assert count_hashes(cache) == 0
    old = time.time() - 3600
    os.utime(folder / NAMES[0], (old, old))  # but its ctime is recent
    hash_files(folder, NAMES[:1])
    assert count_hashes(cache) == 0
    time.sleep(1.1)
    hash_files(folder, NAMES[:2])
    assert count_hashes(cache) == 2


def test_hash_files_does_not_store_file_changed_during_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    real = hashlib.file_digest

    def change(file: object, kind: str) -> object:
        result = real(file, kind)  # type: ignore[arg-type]
        (folder / NAMES[0]).write_bytes(b"new" * 1000)
        return result

    monkeypatch.setattr("hashlib.file_digest", change)
    hash_files(folder, NAMES[:1])
    assert count_hashes(cache) == 0


def test_hash_files_rehash_updates_database(folder: Path, hashed_paths: list[bytes], cache: Path) -> None:
    hash_files(folder, NAMES)
    with sqlite3.connect(cache / "images.sqlite") as connection:
        connection.execute("UPDATE images SET digest = x'00'")
    connection.close()
    assert hash_files(folder, NAMES) == [b"\0"] * 5
    assert hash_files(folder, NAMES, rehash=True) == compute_hashes(folder, NAMES)
    assert hash_files(folder, NAMES) == compute_hashes(folder, NAMES)
    assert len(hashed_paths) == 10


def test_hash_files_returns_none_for_unreadable_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    names = ["missing.jpg", "a", "pipe", "link", NAMES[0]]
    assert hash_files(folder, names) == [None, None, None, None, *compute_hashes(folder, NAMES[:1])]


def test_hash_files_accepts_any_file_name(folder: Path, hashed_paths: list[bytes]) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (folder / name).write_bytes(b"x")
    for _ in range(2):
        assert hash_files(folder, [name]) == [hashlib.sha256(b"x").digest()]
    assert len(hashed_paths) == 1


@pytest.mark.parametrize("offset", [0, 5000], ids=["header", "page"])
def test_hash_files_recreates_corrupt_database(folder: Path, cache: Path, offset: int) -> None:
    names = [f"{number}" for number in range(300)]
    for name in names:
        (folder / name).write_text(name)
    expected = hash_files(folder, names)
    data = bytearray((cache / "images.sqlite").read_bytes())
    data[offset : offset + 3000] = bytes(3000)
    (cache / "images.sqlite").write_bytes(data)
    assert hash_files(folder, names) == expected
    assert hash_files(folder, names) == expected
    assert count_hashes(cache) == 300


def test_hash_files_reports_unusable_database(folder: Path, cache: Path) -> None:
    (cache / "images.sqlite").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        hash_files(folder, NAMES)
    assert str(caught.value) == (
        f"{cache}/images.sqlite: cannot be used (unable to open database file); check the directory, its "
        "permissions and the free disk space, set FTCLI_CACHE to another directory, or disable the cache with "
        "FTCLI_CACHE_LIMIT=0"
    )
    assert count_hashes(cache) == 0


def test_hash_files_reports_cache_that_is_a_file(folder: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("not a folder")
    with pytest.raises(RunError) as caught:
        hash_files(folder, NAMES)
    assert str(caught.value) == (
        f"{cache}/images.sqlite: cannot be used (File exists); check the directory, its permissions and the free disk "
        "space, set FTCLI_CACHE to another directory, or disable the cache with FTCLI_CACHE_LIMIT=0"
    )


def test_hash_files_stores_nothing_with_limit_zero(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert hash_files(folder, NAMES) == compute_hashes(folder, NAMES)
    assert not cache.exists()


def test_hash_files_allows_two_processes(folder: Path, cache: Path, start: StartProcess) -> None:
    code = (
        "from ftcli.caching import file_hashes\n"
        "from pathlib import Path\n"
        "file_hashes._MIN_AGE_NS, file_hashes._BATCH_SIZE = 0, 1\n"
        "names = [str(number) for number in range(15)]\n"
        f"for _ in range(3): assert None not in file_hashes.hash_files(Path({str(folder)!r}), names, rehash=True)\n"
    )
    for number in range(15):
        (folder / str(number)).write_text(str(number))
    processes = [start(code) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert count_hashes(cache) == 15
