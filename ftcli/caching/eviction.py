"""The cache directory, its locks and size limit, and the eviction of the least recently used files."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ftcli import files
from ftcli.errors import RecipeError, RunError
from ftcli.files import is_locked

EVICTABLE_KINDS = ("features", "pixels")
"""The kinds of stores that count towards the limit and are evicted."""

RECORDS_SUFFIX = ".sqlite"
"""The suffix of the record files in a store."""

PROCESS_START = time.time() - 1.0
"""The import time of this module, minus 1 s for the resolution of file times. Files used since then are not evicted."""

_DEFAULT_LIMIT = 20 * 10**9  # bytes
_MIN_FREE_BYTES = 10**9  # bytes of the disk that stay free
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LIMIT_PATTERN = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclass(frozen=True)
class StoredFile:
    """A record file: path, size in bytes, and time of last use in seconds since 1970."""

    path: Path
    size: int
    last_used: float


def get_cache_dir() -> Path:
    """Return the cache directory: $FTCLI_CACHE, $XDG_CACHE_HOME/ftcli or ~/.cache/ftcli. It may not exist.

    Raises RunError if the home directory is unknown.
    """
    ftcli_cache, xdg_cache_home = os.environ.get("FTCLI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return (
            Path(ftcli_cache)
            if ftcli_cache
            else (Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache") / "ftcli"
        )
    except RuntimeError as error:
        raise RunError("the home directory is unknown; set FTCLI_CACHE to a directory for the cache") from error


def get_cache_limit() -> int:
    """Return the size limit of the cache in bytes: $FTCLI_CACHE_LIMIT, such as 20GB or 500 MB, or 20 GB; 0 disables it.

    Raises RecipeError if the variable is not a size.
    """
    text = os.environ.get("FTCLI_CACHE_LIMIT", "").strip()
    if not text:
        return _DEFAULT_LIMIT
    if text == "0":
        return 0
    match = _LIMIT_PATTERN.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"FTCLI_CACHE_LIMIT: {text!r} is not a size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to "
            "disable the cache"
        )
    units = {name.lower(): size for name, size in _UNITS.items()}
    return round(float(match[1]) * units[match[2].lower()])


def evict(num_bytes: int, own_folder: Path | None = None) -> bool:
    """Evict least recently used files until `num_bytes` fit in the cache and 1 GB of the disk stays free.

    Return whether they fit. Files used since this process started, and files of stores that another process is writing,
    are not evicted. Nothing is evicted if the evictable files would not suffice. `own_folder` is the directory of the
    store that the caller has locked for writing.
    """
    cache = get_cache_dir()
    stored_files = list(list_stored_files(cache))
    shortfall = max(
        sum(file.size for file in stored_files) + num_bytes - get_cache_limit(),
        num_bytes + _MIN_FREE_BYTES - _get_free_space(cache),
    )
    if shortfall <= 0:
        return True
    evictable = [file for file in stored_files if file.last_used < PROCESS_START]
    locked_folders = {folder for folder in {file.path.parent for file in evictable} - {own_folder} if is_locked(folder)}
    evictable = sorted(
        (file for file in evictable if file.path.parent not in locked_folders), key=lambda file: file.last_used
    )
    if sum(file.size for file in evictable) < shortfall:
        return False
    for file in evictable:
        if shortfall <= 0:
            break
        if file.path.parent == own_folder:
            _remove(file.path)
        elif not _remove_from_unlocked_folder(file.path):
            continue
        shortfall -= file.size
    return shortfall <= 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)  # another process may evict too
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # of a killed writer


def _remove_from_unlocked_folder(path: Path) -> bool:
    """Remove a record file, and its store if that is empty; return False if the store is locked or of another user."""
    try:
        with acquire_lock(path.parent, lambda _: False) as is_acquired:
            if not is_acquired:
                return False
            _remove(path)
    except PermissionError:
        return False
    if not any(path.parent.glob(f"*{RECORDS_SUFFIX}")):
        remove_unlocked_folder(path.parent)
    return True


def fits_in_cache(size: int) -> bool:
    """Return whether `size` bytes would fit after evicting every file. Does not evict."""
    cache = get_cache_dir()
    evictable_size = sum(file.size for file in list_stored_files(cache))
    return size <= get_cache_limit() and size + _MIN_FREE_BYTES <= _get_free_space(cache) + evictable_size


def list_stored_files(cache: Path) -> Iterator[StoredFile]:
    """Yield the record files of all stores."""
    for kind in EVICTABLE_KINDS:
        for path in (cache / kind).glob(f"*/*{RECORDS_SUFFIX}"):
            try:
                file_stat = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(file_stat.st_mode):
                yield StoredFile(path, file_stat.st_size, file_stat.st_mtime)


def _get_free_space(folder: Path) -> int:
    """Return the free bytes of the disk of a directory, which may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def acquire_lock(folder: Path, wait: Callable[[str], bool]) -> Iterator[bool]:
    """Lock a directory for one writer while the context lasts; create the directory if it does not exist.

    `wait(owner)` is called repeatedly while another process holds the lock; if it returns False, the context manager
    yields False. `owner` is the process ID. Raises RunError if the directory cannot be written.
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
    """Remove a directory of the cache and its contents, and return True; return False if a process has locked it."""
    with acquire_lock(folder, lambda _: False) as is_acquired:
        if is_acquired:
            for path in sorted(folder.iterdir(), key=lambda path: path.name == ".lock"):  # the lock file last
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # another process has created a file in it
                folder.rmdir()
    return is_acquired
