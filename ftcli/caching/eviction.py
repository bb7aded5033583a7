"""Where the cache is, and how much it may take of the disk."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.caching.locks import is_locked, remove_unlocked_folder
from ftcli.errors import RecipeError, RunError

EVICTABLE_KINDS = ("features", "pixels")
"""The kinds of what was computed: they count towards the limit, and the oldest use makes room for the newest."""

CHUNK_SUFFIX = ".chunk"
"""How the names of the files end that hold it."""

PROCESS_START = time.time() - 1.0
"""When this process began. What was used since then stays; files are dated by a clock that ticks more coarsely."""

_DEFAULT_LIMIT = 20 * 10**9  # bytes
_MIN_FREE_BYTES = 10**9  # bytes of the disk that are left to others
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LIMIT_PATTERN = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclass(frozen=True)
class ChunkFile:
    """A file of records: its place, its bytes, and when it was last used (seconds since 1970)."""

    path: Path
    size: int
    last_used: float


def get_cache_dir() -> Path:
    """The folder of the cache: $FTCLI_CACHE, $XDG_CACHE_HOME/ftcli or ~/.cache/ftcli, the first that is set. It need
    not be there. Raises RunError if the home folder is unknown."""
    ftcli_cache, xdg_cache_home = os.environ.get("FTCLI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return (
            Path(ftcli_cache)
            if ftcli_cache
            else (Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache") / "ftcli"
        )
    except RuntimeError as error:
        raise RunError("the home folder is unknown; set FTCLI_CACHE to a folder for downloads") from error


def get_cache_limit() -> int:
    """The most bytes that what was computed may take: $FTCLI_CACHE_LIMIT, such as 20GB or 500 MB, else 20 GB; 0 keeps
    nothing. Raises RecipeError if it is no size."""
    text = os.environ.get("FTCLI_CACHE_LIMIT", "").strip()
    if not text:
        return _DEFAULT_LIMIT
    if text == "0":
        return 0
    match = _LIMIT_PATTERN.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"FTCLI_CACHE_LIMIT: {text!r} is no size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to "
            "keep nothing"
        )
    units = {name.lower(): size for name, size in _UNITS.items()}
    return round(float(match[1]) * units[match[2].lower()])


def evict(num_bytes: int) -> bool:
    """Let so many more bytes fit into the limit and onto the disk, of which 1 GB stays free: chunks leave, oldest use
    first. What this process has used stays, and what any process is filling.

    False, and then nothing leaves, if that cannot be enough: then one does without the cache.
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
            chunk.path.unlink(missing_ok=True)  # another process may make room too
        except PermissionError:  # another user's
            continue
        shortfall -= chunk.size
        if not any(chunk.path.parent.glob(f"*{CHUNK_SUFFIX}")):
            remove_unlocked_folder(chunk.path.parent)
    return shortfall <= 0


def fits_in_cache(size: int) -> bool:
    """Whether so many bytes fit into the limit and onto the disk when all that other runs have kept leaves. Nothing
    leaves yet."""
    cache = get_cache_dir()
    evictable_size = sum(chunk.size for chunk in list_chunks(cache))
    return size <= get_cache_limit() and size + _MIN_FREE_BYTES <= _get_free_space(cache) + evictable_size


def list_chunks(cache: Path) -> Iterator[ChunkFile]:
    """All chunks of what was computed, as far as they do not leave meanwhile."""
    for kind in EVICTABLE_KINDS:
        for path in (cache / kind).glob(f"*/*{CHUNK_SUFFIX}"):
            try:
                file_stat = path.stat()
            except FileNotFoundError:
                continue
            yield ChunkFile(path, file_stat.st_size, file_stat.st_mtime)


def _get_free_space(folder: Path) -> int:
    """The free bytes of the disk that a folder is on, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
