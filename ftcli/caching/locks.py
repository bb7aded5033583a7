"""Locks on the directories of the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftcli import files
from ftcli.errors import RunError


@contextmanager
def acquire_lock(folder: Path, wait: Callable[[str], bool]) -> Iterator[bool]:
    """Lock a directory for one writer while the context lasts; create the directory if it does not exist.

    While another process holds the lock, `wait` is called repeatedly with its process number. The context yields False
    if `wait` returns False. Raises RunError if the directory cannot be written.
    """
    folder = folder.absolute()
    while True:
        try:
            lock_or_owner = files.try_lock(folder)
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
        lock_or_owner.release()


def remove_unlocked_folder(folder: Path) -> bool:
    """Remove a directory of the cache and its files, and return True; return False if a process has locked it."""
    with acquire_lock(folder, lambda _: False) as is_acquired:
        if is_acquired:
            for path in sorted(folder.iterdir(), key=lambda path: path.name == ".lock"):  # the lock file last
                path.unlink(missing_ok=True)
            with suppress(OSError):  # another process has created a file in it
                folder.rmdir()
    return is_acquired
