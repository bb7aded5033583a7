"""The cache directory, its size limit, and the eviction of least recently used chunks."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.caching.locks import remove_unlocked_folder
from ftcli.errors import RecipeError, RunError
from ftcli.files import is_locked

EVICTABLE_KINDS = ("features", "pixels")
"""The kinds of stores that count towards the limit and are evicted."""

CHUNK_SUFFIX = ".chunk"
"""The suffix of chunk files."""

PROCESS_START = time.time() - 1.0
"""The start time of this process, minus the resolution of file times. Chunks used since then are not evicted."""

_DEFAULT_LIMIT = 20 * 10**9  # bytes
_MIN_FREE_BYTES = 10**9  # bytes of the disk that stay free
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LIMIT_PATTERN = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclass(frozen=True)
class ChunkFile:
    """A chunk file: path, size in bytes, and time of last use in seconds since 1970."""

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


def evict(num_bytes: int) -> bool:
    """Make room for `num_bytes` in the cache and on the disk, where 1 GB stays free; return whether there is room.

    Chunks are evicted in the order of their last use, except those that this process has used and those of a store that
    is being written. Nothing is evicted if that would not be enough.
    """
    cache = get_cache_dir()
    chunks = list(list_chunks(cache))
    shortfall = max(
        sum(chunk.size for chunk in chunks) + num_bytes - get_cache_limit(),
        num_bytes + _MIN_FREE_BYTES - _get_free_space(cache),
    )
    if shortfall <= 0:
        return True
    evictable = [chunk for chunk in chunks if chunk.last_used < PROCESS_START]
    locked_folders = {folder for folder in {chunk.path.parent for chunk in evictable} if is_locked(folder)}
    evictable = sorted(
        (chunk for chunk in evictable if chunk.path.parent not in locked_folders), key=lambda chunk: chunk.last_used
    )
    if sum(chunk.size for chunk in evictable) < shortfall:
        return False
    for chunk in evictable:
        if shortfall <= 0:
            break
        try:
            chunk.path.unlink(missing_ok=True)  # another process may evict too
        except PermissionError:  # owned by another user
            continue
        shortfall -= chunk.size
        if not any(chunk.path.parent.glob(f"*{CHUNK_SUFFIX}")):
            remove_unlocked_folder(chunk.path.parent)
    return shortfall <= 0


def fits_in_cache(size: int) -> bool:
    """Return whether `size` bytes would fit if all chunks were evicted; evict nothing."""
    cache = get_cache_dir()
    evictable_size = sum(chunk.size for chunk in list_chunks(cache))
    return size <= get_cache_limit() and size + _MIN_FREE_BYTES <= _get_free_space(cache) + evictable_size


def list_chunks(cache: Path) -> Iterator[ChunkFile]:
    """Iterate over the chunk files of all stores."""
    for kind in EVICTABLE_KINDS:
        for path in (cache / kind).glob(f"*/*{CHUNK_SUFFIX}"):
            try:
                file_stat = path.stat()
            except FileNotFoundError:
                continue
            yield ChunkFile(path, file_stat.st_size, file_stat.st_mtime)


def _get_free_space(folder: Path) -> int:
    """Return the free bytes of the disk of a directory, which may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
