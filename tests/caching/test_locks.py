"""Locks of cache directories exclude other writers and end with their process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ftcli.caching.locks import acquire_lock, remove_unlocked_folder
from ftcli.files import is_locked
from tests.caching.conftest import StartProcess, read_line


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


def test_acquire_lock_passes_owner_to_wait(tmp_path: Path, start: StartProcess) -> None:
    process = start(
        "from pathlib import Path; from ftcli.caching.locks import acquire_lock\n"
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
        "from pathlib import Path; from ftcli.caching.locks import acquire_lock\n"
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
        "from pathlib import Path; from ftcli.caching.locks import acquire_lock\n"
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
