"""Where the cache is, what it may take, and what leaves when there is no room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ftcli.caching.places import can_hold, find_cache, find_limit, make_room
from ftcli.caching.store import Store, make_key
from ftcli.errors import RecipeError
from ftcli.results import Silent
from tests.caching.conftest import Start, hear


def make_chunk(name: str, age: float, size: int = 1000) -> Path:
    """A chunk in a store of this name that was last used so many hours ago."""
    store = Store("features", {"name": name}, name)
    before = set(store.folder.glob("*.chunk"))
    with store.fill(Silent()) as filler:
        assert filler
        filler.add(make_key(str(age)), bytes(size - 36 - 20))  # beside its entry and the footer
    (path,) = set(store.folder.glob("*.chunk")) - before
    used = path.stat().st_mtime - 3600 * age
    os.utime(path, (used, used))
    return path


def test_the_first_place_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find_cache() == tmp_path / "cache"
    monkeypatch.delenv("FTCLI_CACHE")
    assert find_cache() == tmp_path / "xdg/ftcli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache() == tmp_path / ".cache/ftcli"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 20 * 10**9),
        ("0", 0),
        ("20GB", 20 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5tb", 15 * 10**11),
        (" 7 kB ", 7000),
        ("12 b", 12),
    ],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", text)
    assert find_limit() == size


@pytest.mark.parametrize("text", ["20", "-1GB", "a lot", "20 GiB", "1e3 MB", "GB"])
def test_what_is_no_limit(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", text)
    with pytest.raises(RecipeError) as caught:
        make_room(1)
    assert str(caught.value) == (
        f"FTCLI_CACHE_LIMIT: {text!r} is no size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to keep "
        "nothing"
    )


def test_the_oldest_use_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [make_chunk(name, age) for name, age in (("a", 3), ("b", 5), ("a", 1), ("c", 2))]
    assert [path.stat().st_size for path in chunks] == [1000] * 4
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "4 kB")
    assert make_room(0)
    assert [path.exists() for path in chunks] == [True] * 4
    assert make_room(1)
    assert [path.exists() for path in chunks] == [True, False, True, True]
    assert not chunks[1].parent.exists()  # nothing is left in it
    assert can_hold(4000)
    assert not can_hold(4001)
    assert make_room(2500)
    assert [path.exists() for path in chunks] == [False, False, True, False]
    assert not make_room(4001)
    assert chunks[2].exists()


def test_a_limit_of_0_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = make_chunk("a", 1)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert not make_room(1)
    assert make_room(0)
    assert not chunk.exists()


def test_what_this_process_has_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    old, found = make_chunk("a", 2), make_chunk("b", 1)
    assert Store("features", {"name": "b"}, "b").find([make_key("1")]) == [True]
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "2 kB")
    assert not make_room(1500)
    assert old.exists()
    assert make_room(900)
    assert (old.exists(), found.exists()) == (False, True)


def test_what_another_process_fills_stays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = make_chunk("a", 2)
    code = "with Store('features', {'name': 'a'}, 'a').fill(Silent()): say('filling'); sys.stdin.readline()\n"
    process = start(code)
    assert hear(process) == "filling"
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1 kB")
    assert not make_room(900)
    process.kill()
    process.wait()
    assert make_room(900)
    assert not chunk.exists()


def test_a_gigabyte_of_the_disk_is_left_to_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    chunks = [make_chunk("a", 2), make_chunk("a", 1)]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9 + 500))
    assert can_hold(2500)
    assert not can_hold(2501)
    assert make_room(500)
    assert chunks[0].exists()
    assert make_room(501)
    assert [path.exists() for path in chunks] == [False, True]
    assert not make_room(10_000)
    assert chunks[1].exists()


def test_what_is_published_makes_the_oldest_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_chunk("a", 2)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1.5 kB")
    new = make_chunk("b", 0)
    assert (old.exists(), new.exists()) == (False, True)
