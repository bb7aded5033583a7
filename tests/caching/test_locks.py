"""One process at a time writes to a folder, and a lock that was taken away is none."""

from __future__ import annotations

import fcntl
from io import FileIO
from pathlib import Path

import pytest

from ftcli.caching.locks import hold, is_held, remove_folder
from tests.caching.conftest import Start, hear


def test_a_folder_is_held_until_the_context_ends(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    assert not is_held(folder)
    with hold(folder, lambda _: False) as held:
        assert held
        assert is_held(folder)
        assert not remove_folder(folder)
        assert is_held(folder)
        with hold(folder, lambda _: False) as again:
            assert not again
        assert is_held(folder)
    assert not is_held(folder)
    (folder / "file").write_text("x")
    assert remove_folder(folder)
    assert not folder.exists()


def test_what_another_process_holds_is_told_with_its_number_and_stays(tmp_path: Path, start: Start) -> None:
    process = start(
        "from pathlib import Path; from ftcli.caching.locks import hold\n"
        f"with hold(Path({str(tmp_path)!r}), lambda _: False): say('holding'); sys.stdin.readline()\n"
    )
    assert hear(process) == "holding"
    asked: list[str] = []

    def wait(owner: str) -> bool:
        asked.append(owner)
        return len(asked) < 3

    with hold(tmp_path, wait) as held:
        assert not held
    assert asked == [str(process.pid)] * 3
    assert is_held(tmp_path)
    assert not remove_folder(tmp_path)
    process.kill()
    process.wait()
    assert not is_held(tmp_path)
    with hold(tmp_path, wait) as held:
        assert held


def test_who_waits_for_a_folder_that_is_taken_away_makes_it_anew(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "a"
    code = (
        "from pathlib import Path; from ftcli.caching.locks import hold\n"
        f"folder = Path({str(folder)!r})\n"
        "def wait(owner): say('waiting'); sys.stdin.readline(); return True\n"
        "with hold(folder, wait) as held: say(held); sys.stdin.readline()\n"
    )
    with hold(folder, lambda _: False):
        process = start(code)
        assert hear(process) == "waiting"
        (folder / ".lock").unlink()
        folder.rmdir()
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    assert hear(process) == "True"
    assert (folder / ".lock").read_text() == str(process.pid)
    assert is_held(folder)


def test_a_lock_that_was_taken_away_at_this_moment_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fcntl.lockf, 0

    def lock(file: FileIO, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / ".lock").unlink()
        real(file, how)

    monkeypatch.setattr("fcntl.lockf", lock)
    with hold(tmp_path, lambda _: False) as held:
        assert held
        assert (tmp_path / ".lock").exists()
        assert calls == 2
