"""A file's digest is that of its bytes as they are now, and is computed once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from ftcli.caching import images
from ftcli.caching.images import count_images, digest_images
from ftcli.errors import RunError
from tests.caching.conftest import Start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, in which a file may be remembered at once, not only when it is 2 s old."""
    monkeypatch.setattr(images, "_TICK", 0)
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for number in range(5):
        (folder / f"a/{number}.jpg").write_bytes(bytes([number]) * 1000)
    return folder


NAMES = [f"a/{number}.jpg" for number in range(5)]


def digest(folder: Path, names: list[str]) -> list[bytes | None]:
    return [hashlib.sha256((folder / name).read_bytes()).digest() for name in names]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are digested, not remembered."""
    seen: list[bytes] = []
    real = images._digest_file

    def digest_file(place: bytes) -> object:
        seen.append(place)
        return real(place)

    monkeypatch.setattr(images, "_digest_file", digest_file)
    return seen


def test_each_file_is_digested_once(folder: Path, opened: list[bytes], cache: Path) -> None:
    for _ in range(2):
        assert digest_images(folder, [*NAMES, NAMES[0]]) == digest(folder, [*NAMES, NAMES[0]])
    assert len(opened) == 5
    assert digest_images(Path("elsewhere"), [str(folder / name) for name in NAMES]) == digest(folder, NAMES)
    assert len(opened) == 5
    assert count_images(cache) == 5
    assert digest_images(folder, []) == []


def test_many_files_are_more_than_a_query_and_a_task_hold(folder: Path, opened: list[bytes]) -> None:
    names = [f"{number}" for number in range(1100)]
    for name in names:
        (folder / name).write_text(name)
    for _ in range(2):
        assert digest_images(folder, names) == [hashlib.sha256(name.encode()).digest() for name in names]
    assert len(opened) == 1100


def test_other_bytes_of_the_same_size_and_date_are_noticed(folder: Path, opened: list[bytes]) -> None:
    before = digest_images(folder, NAMES)
    place = folder / NAMES[2]
    found = place.stat()
    place.write_bytes(b"x" * 1000)
    os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (place.stat().st_size, place.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)
    after = digest_images(folder, NAMES)
    assert after == digest(folder, NAMES)
    assert after[2] != before[2]
    assert opened[5:] == [os.fsencode(place)]


def test_another_file_in_its_place_is_noticed(folder: Path, opened: list[bytes]) -> None:
    digest_images(folder, NAMES)
    (folder / NAMES[0]).rename(folder / NAMES[1])
    (folder / NAMES[2]).unlink()
    (folder / NAMES[2]).symlink_to("3.jpg")
    assert digest_images(folder, NAMES[1:]) == digest(folder, NAMES[1:])
    assert len(opened) == 7
    assert digest_images(folder, NAMES[:1]) == [None]


def test_a_young_file_is_not_remembered(
    folder: Path, opened: list[bytes], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(images, "_TICK", 10**9)
    for _ in range(2):
        assert digest_images(folder, NAMES[:2]) == digest(folder, NAMES[:2])
    assert len(opened) == 4
    assert count_images(cache) == 0
    old = time.time() - 3600
    os.utime(folder / NAMES[0], (old, old))  # but its ctime is of now
    digest_images(folder, NAMES[:1])
    assert count_images(cache) == 0
    time.sleep(1.1)
    digest_images(folder, NAMES[:2])
    assert count_images(cache) == 2


def test_a_file_that_changes_meanwhile_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    real = hashlib.file_digest

    def change(file: object, kind: str) -> object:
        found = real(file, kind)  # type: ignore[arg-type]
        (folder / NAMES[0]).write_bytes(b"new" * 1000)
        return found

    monkeypatch.setattr("hashlib.file_digest", change)
    digest_images(folder, NAMES[:1])
    assert count_images(cache) == 0


def test_verify_digests_all_again_and_keeps_what_it_finds(folder: Path, opened: list[bytes], cache: Path) -> None:
    digest_images(folder, NAMES)
    with sqlite3.connect(cache / "images.sqlite") as memory:
        memory.execute("UPDATE images SET digest = x'00'")
    memory.close()
    assert digest_images(folder, NAMES) == [b"\0"] * 5
    assert digest_images(folder, NAMES, verify=True) == digest(folder, NAMES)
    assert digest_images(folder, NAMES) == digest(folder, NAMES)
    assert len(opened) == 10


def test_what_cannot_be_read_has_no_digest(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    names = ["missing.jpg", "a", "pipe", "link", NAMES[0]]
    assert digest_images(folder, names) == [None, None, None, None, *digest(folder, NAMES[:1])]


def test_names_in_any_bytes(folder: Path, opened: list[bytes]) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (folder / name).write_bytes(b"x")
    for _ in range(2):
        assert digest_images(folder, [name]) == [hashlib.sha256(b"x").digest()]
    assert len(opened) == 1


@pytest.mark.parametrize("place", [0, 5000], ids=["header", "page"])
def test_a_damaged_memory_is_begun_anew(folder: Path, cache: Path, place: int) -> None:
    names = [f"{number}" for number in range(300)]
    for name in names:
        (folder / name).write_text(name)
    right = digest_images(folder, names)
    data = bytearray((cache / "images.sqlite").read_bytes())
    data[place : place + 3000] = bytes(3000)
    (cache / "images.sqlite").write_bytes(data)
    assert digest_images(folder, names) == right
    assert digest_images(folder, names) == right
    assert count_images(cache) == 300


def test_a_memory_that_cannot_be_used_is_told(folder: Path, cache: Path) -> None:
    (cache / "images.sqlite").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        digest_images(folder, NAMES)
    assert str(caught.value) == (
        f"{cache}/images.sqlite: cannot be used (unable to open database file); check the folder, its permissions and "
        "the space on its disk, let FTCLI_CACHE name another folder, or set FTCLI_CACHE_LIMIT=0 to keep nothing"
    )
    assert count_images(cache) == 0


def test_a_cache_that_is_no_folder_is_told(folder: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("no folder")
    with pytest.raises(RunError) as caught:
        digest_images(folder, NAMES)
    assert str(caught.value) == (
        f"{cache}/images.sqlite: cannot be used (File exists); check the folder, its permissions and the space on its "
        "disk, let FTCLI_CACHE name another folder, or set FTCLI_CACHE_LIMIT=0 to keep nothing"
    )


def test_where_nothing_is_to_be_kept_nothing_is(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert digest_images(folder, NAMES) == digest(folder, NAMES)
    assert not cache.exists()


def test_two_processes_may_remember_at_once(folder: Path, cache: Path, start: Start) -> None:
    code = (
        "from ftcli.caching import images\n"
        "from pathlib import Path\n"
        "images._TICK, images._AT_ONCE = 0, 1\n"
        "names = [str(number) for number in range(15)]\n"
        f"for _ in range(3): assert None not in images.digest_images(Path({str(folder)!r}), names, verify=True)\n"
    )
    for number in range(15):
        (folder / str(number)).write_text(str(number))
    processes = [start(code) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert count_images(cache) == 15
