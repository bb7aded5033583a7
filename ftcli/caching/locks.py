"""Who may write to a folder of the cache: one process at a time, until it ends."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ftcli import files
from ftcli.errors import RunError

_locked_folders: set[Path] = set()  # by this process: to open such a lock once more and close it would let go of it
_mutex = threading.Lock()


@contextmanager
def acquire_lock(folder: Path, wait: Callable[[str], bool]) -> Iterator[bool]:
    """Be the only writer of a folder, which is made if need be, for as long as the context lasts; a lock ends with its
    process. While another holds it, `wait` is asked with the number of that process, again and again, whether to go on
    waiting; the context gives False, and holds nothing, when it says no.

    Raises RunError if the folder cannot be written.
    """
    folder = folder.absolute()
    while True:
        try:
            lock_or_owner = _try_lock(folder)
        except OSError as error:
            raise RunError(files.describe_write_error(folder, 0, error)) from error
        if not isinstance(lock_or_owner, str):
            break
        if not wait(lock_or_owner):
            yield False
            return
    try:
        yield True
    finally:
        _release(folder, lock_or_owner)


def is_locked(folder: Path) -> bool:
    """Whether a process, this one too, writes to a folder."""
    folder = folder.absolute()
    with _mutex:
        return folder in _locked_folders or files.is_locked(folder)


def remove_unlocked_folder(folder: Path) -> bool:
    """Take a folder and its files away, unless somebody writes to it: then False, and it stays."""
    with acquire_lock(folder, lambda _: False) as is_acquired:
        if is_acquired:
            for path in sorted(folder.iterdir(), key=lambda path: path.name == ".lock"):  # the lock as the last
                path.unlink(missing_ok=True)
            with suppress(OSError):  # another process has come, who finds it empty
                folder.rmdir()
    return is_acquired


def _try_lock(folder: Path) -> FileIO | str:
    """The lock, or who has it."""
    with _mutex:
        if folder in _locked_folders:
            return str(os.getpid())
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / ".lock"
            try:
                file = path.open("a+b", buffering=0)
            except FileNotFoundError:  # whoever cleared the cache took the folder away again
                continue
            try:
                # A POSIX lock: processes that this one starts do not inherit it, so they cannot hold it after a kill.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().decode("ascii", "replace").strip()
                file.close()
                return owner or "unknown"
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
            file.close()  # whoever held it before removed it: this is no lock any more
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        _locked_folders.add(folder)
        return file


def _release(folder: Path, file: FileIO) -> None:
    with _mutex:
        file.close()
        _locked_folders.discard(folder)
