"""The cache directory, its limit, and eviction."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from ftcli.caching import store as store_module
from ftcli.caching.eviction import (
    acquire_lock,
    evict,
    fits_in_cache,
    get_cache_dir,
    get_cache_limit,
    remove_unlocked_folder,
)
from ftcli.caching.store import Store, make_key
from ftcli.errors import RecipeError
from ftcli.files import is_locked
from tests.caching.conftest import TASK, StartProcess, read_line

FILE_BYTES = 28_672  # SQLite: three pages of 4 kB for schema, records and index, and four for a large record


@pytest.fixture(autouse=True)
def _one_file_for_each_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_FILE_BYTES", 1)


def make_file(name: str, age: float) -> Path:
    """Write a file of a store that was last used `age` hours ago."""
    store = Store("features", {"name": name}, name)
    before = set(store.folder.glob("*.sqlite"))
    with store.writer(TASK) as writer:
        writer.add(make_key(str(age)), bytes(17_000))
    (path,) = set(store.folder.glob("*.sqlite")) - before
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
def test_get_cache_limit_rejects_invalid_sizes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", text)
    with pytest.raises(RecipeError) as caught:
        evict(1)
    assert str(caught.value) == (
        f"FTCLI_CACHE_LIMIT: {text!r} is not a size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to "
        "disable the cache"
    )


def set_limit(monkeypatch: pytest.MonkeyPatch, num_files: float) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", f"{round(num_files * FILE_BYTES)} B")


def test_evict_removes_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [make_file(name, age) for name, age in (("a", 3), ("b", 5), ("a", 1), ("c", 2))]
    assert [path.stat().st_size for path in files] == [FILE_BYTES] * 4
    set_limit(monkeypatch, 4)
    assert evict(0)
    assert [path.exists() for path in files] == [True] * 4
    assert evict(1)
    assert [path.exists() for path in files] == [True, False, True, True]
    assert not files[1].parent.exists()  # the store is empty
    assert fits_in_cache(4 * FILE_BYTES)
    assert not fits_in_cache(4 * FILE_BYTES + 1)
    assert evict(5 * FILE_BYTES // 2)
    assert [path.exists() for path in files] == [False, False, True, False]
    assert not evict(4 * FILE_BYTES + 1)
    assert files[2].exists()


def test_evict_limit_zero_removes_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_file("a", 1)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert not evict(1)
    assert evict(0)
    assert not file.exists()


def test_evict_skips_files_used_by_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    old, used_file = make_file("a", 2), make_file("b", 1)
    assert Store("features", {"name": "b"}, "b").contains([make_key("1")]) == [True]
    set_limit(monkeypatch, 2)
    assert not evict(3 * FILE_BYTES // 2)
    assert old.exists()
    assert evict(FILE_BYTES // 2)
    assert (old.exists(), used_file.exists()) == (False, True)


def test_evict_skips_store_being_written(start: StartProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_file("a", 2)
    code = "with Store('features', {'name': 'a'}, 'a').writer(TASK): say('writing'); sys.stdin.readline()\n"
    process = start(code)
    assert read_line(process) == "writing"
    set_limit(monkeypatch, 1)
    assert not evict(1)
    process.kill()
    process.wait()
    (file.parent / f"{file.name}-journal").write_bytes(b"")
    assert evict(1)
    assert not file.parent.exists()


def test_evict_removes_old_files_of_store_that_caller_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_file("a", 2)
    set_limit(monkeypatch, 1)
    with Store("features", {"name": "a"}, "a").writer(TASK) as writer:
        assert not evict(1)
        assert writer.reserve(1)
        assert not old.exists()
        writer.add(make_key("new"), b"x")
        writer.flush()
        assert not writer.reserve(FILE_BYTES)
    assert Store("features", {"name": "a"}, "a").contains([make_key("new")]) == [True]


def test_evict_leaves_free_disk_space(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    files = [make_file("a", 2), make_file("a", 1)]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9 + 500))
    assert fits_in_cache(2 * FILE_BYTES + 500)
    assert not fits_in_cache(2 * FILE_BYTES + 501)
    assert evict(500)
    assert files[0].exists()
    assert evict(501)
    assert [path.exists() for path in files] == [False, True]
    assert not evict(2 * FILE_BYTES)
    assert files[1].exists()


def test_store_writer_evicts_oldest_on_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_file("a", 2)
    set_limit(monkeypatch, 1.5)
    new = make_file("b", 0)
    assert (old.exists(), new.exists()) == (False, True)


def test_acquire_lock_lasts_until_context_ends(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    assert not is_locked(folder)
    with acquire_lock(folder, lambda _: False) as is_acquired:
        assert is_acquired
        assert is_locked(folder)
        assert not remove_unlocked_folder(folder)
        assert is_locked(folder)
        with acquire_lock(folder, lambda _: False) as is_acquired_again:
            assert not is_acquired_again
        assert is_locked(folder)
    assert not is_locked(folder)
    (folder / "file").write_text("x")
    assert remove_unlocked_folder(folder)
    assert not folder.exists()


def test_remove_unlocked_folder_removes_subfolders_but_no_link_targets(tmp_path: Path) -> None:
    folder, target = tmp_path / "store", tmp_path / "target"
    (folder / "a/b").mkdir(parents=True)
    target.mkdir()
    for path in (folder / "a/b/file", folder / "file", target / "file"):
        path.write_text("x")
    for link in (folder / "link", folder / "a/link"):
        link.symlink_to(target)
    assert remove_unlocked_folder(folder)
    assert not folder.exists()
    assert (target / "file").read_text() == "x"


def test_acquire_lock_passes_owner_to_wait(tmp_path: Path, start: StartProcess) -> None:
    process = start(
        "from pathlib import Path; from ftcli.caching.eviction import acquire_lock\n"
        f"with acquire_lock(Path({str(tmp_path)!r}), lambda _: False): say('locked'); sys.stdin.readline()\n"
    )
    assert read_line(process) == "locked"
    owners: list[str] = []

    def wait(owner: str) -> bool:
        owners.append(owner)
        return len(owners) < 3

    with acquire_lock(tmp_path, wait) as is_acquired:
        assert not is_acquired
    assert owners == [str(process.pid)] * 3
    assert is_locked(tmp_path)
    assert not remove_unlocked_folder(tmp_path)
    process.kill()
    process.wait()
    assert not is_locked(tmp_path)
    with acquire_lock(tmp_path, wait) as is_acquired:
        assert is_acquired


def test_acquire_lock_recreates_removed_folder(tmp_path: Path, start: StartProcess) -> None:
    folder = tmp_path / "a"
    code = (
        "from pathlib import Path; from ftcli.caching.eviction import acquire_lock\n"
        f"folder = Path({str(folder)!r})\n"
        "def wait(owner): say('waiting'); sys.stdin.readline(); return True\n"
        "with acquire_lock(folder, wait) as is_acquired: say(is_acquired); sys.stdin.readline()\n"
    )
    with acquire_lock(folder, lambda _: False):
        process = start(code)
        assert read_line(process) == "waiting"
        (folder / ".lock").unlink()
        folder.rmdir()
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    assert read_line(process) == "True"
    assert (folder / ".lock").read_text() == str(process.pid)
    assert is_locked(folder)


def test_acquire_lock_ends_with_killed_process_despite_forked_child(tmp_path: Path, start: StartProcess) -> None:
    # The child reports itself, because it closes the inherited lock file only when it starts.
    process = start(
        "import multiprocessing, os, time\n"
        "from pathlib import Path; from ftcli.caching.eviction import acquire_lock\n"
        "def run_child(): say(os.getpid()); time.sleep(60)\n"
        f"with acquire_lock(Path({str(tmp_path)!r}), lambda _: False):\n"
        "    child = multiprocessing.get_context('fork').Process(target=run_child); child.start()\n"
        "    sys.stdin.readline()\n"
    )
    child = int(read_line(process))
    try:
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
