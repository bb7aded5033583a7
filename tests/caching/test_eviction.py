"""The cache directory, its limit, and eviction."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ftcli.caching.eviction import evict, fits_in_cache, get_cache_dir, get_cache_limit
from ftcli.caching.store import Store, make_key
from ftcli.errors import RecipeError
from tests.caching.conftest import StartProcess, read_line


def make_chunk(name: str, age: float, size: int = 1000) -> Path:
    """Write a chunk of a store that was last used `age` hours ago."""
    store = Store("features", {"name": name}, name)
    before = set(store.folder.glob("*.chunk"))
    with store.writer() as writer:
        assert writer
        writer.add(make_key(str(age)), bytes(size - 36 - 20))  # without its index entry and the footer
    (path,) = set(store.folder.glob("*.chunk")) - before
    last_used = path.stat().st_mtime - 3600 * age
    os.utime(path, (last_used, last_used))
    return path


def test_get_cache_dir_uses_first_variable_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert get_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("FTCLI_CACHE")
    assert get_cache_dir() == tmp_path / "xdg/ftcli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_cache_dir() == tmp_path / ".cache/ftcli"


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
def test_get_cache_limit_parses_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", text)
    assert get_cache_limit() == size


@pytest.mark.parametrize("text", ["20", "-1GB", "a lot", "20 GiB", "1e3 MB", "GB"])
def test_get_cache_limit_refuses_invalid_sizes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", text)
    with pytest.raises(RecipeError) as caught:
        evict(1)
    assert str(caught.value) == (
        f"FTCLI_CACHE_LIMIT: {text!r} is not a size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to "
        "disable the cache"
    )


def test_evict_removes_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [make_chunk(name, age) for name, age in (("a", 3), ("b", 5), ("a", 1), ("c", 2))]
    assert [path.stat().st_size for path in chunks] == [1000] * 4
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "4 kB")
    assert evict(0)
    assert [path.exists() for path in chunks] == [True] * 4
    assert evict(1)
    assert [path.exists() for path in chunks] == [True, False, True, True]
    assert not chunks[1].parent.exists()  # the store is empty
    assert fits_in_cache(4000)
    assert not fits_in_cache(4001)
    assert evict(2500)
    assert [path.exists() for path in chunks] == [False, False, True, False]
    assert not evict(4001)
    assert chunks[2].exists()


def test_evict_limit_zero_removes_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = make_chunk("a", 1)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert not evict(1)
    assert evict(0)
    assert not chunk.exists()


def test_evict_spares_chunks_used_by_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    old, used_chunk = make_chunk("a", 2), make_chunk("b", 1)
    assert Store("features", {"name": "b"}, "b").contains([make_key("1")]) == [True]
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "2 kB")
    assert not evict(1500)
    assert old.exists()
    assert evict(900)
    assert (old.exists(), used_chunk.exists()) == (False, True)


def test_evict_spares_store_being_written(start: StartProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = make_chunk("a", 2)
    code = "with Store('features', {'name': 'a'}, 'a').writer(): say('writing'); sys.stdin.readline()\n"
    process = start(code)
    assert read_line(process) == "writing"
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1 kB")
    assert not evict(900)
    process.kill()
    process.wait()
    assert evict(900)
    assert not chunk.exists()


def test_evict_leaves_free_disk_space(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    chunks = [make_chunk("a", 2), make_chunk("a", 1)]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9 + 500))
    assert fits_in_cache(2500)
    assert not fits_in_cache(2501)
    assert evict(500)
    assert chunks[0].exists()
    assert evict(501)
    assert [path.exists() for path in chunks] == [False, True]
    assert not evict(10_000)
    assert chunks[1].exists()


def test_store_writer_evicts_oldest_on_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_chunk("a", 2)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1.5 kB")
    new = make_chunk("b", 0)
    assert (old.exists(), new.exists()) == (False, True)
