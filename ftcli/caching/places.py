"""Where the cache is, and how much it may take of the disk."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.caching.locks import is_held, remove_folder
from ftcli.errors import RecipeError, RunError

COMPUTED = ("features", "pixels")
"""The kinds of what was computed: they count towards the limit, and the oldest use makes room for the newest."""

CHUNK = ".chunk"
"""How the names of the files end that hold it."""

BEGUN = time.time() - 1.0
"""When this process began. What was used since then stays; files are dated by a clock that ticks more coarsely."""

_USUAL = 20 * 10**9  # bytes
_FREE = 10**9  # bytes of the disk that are left to others
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LIMIT = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclass(frozen=True)
class ChunkFile:
    """A file of records: its place, its bytes, and when it was last used (seconds since 1970)."""

    path: Path
    bytes: int
    used: float


def find_cache() -> Path:
    """The folder of the cache: $FTCLI_CACHE, $XDG_CACHE_HOME/ftcli or ~/.cache/ftcli, the first that is set. It need
    not be there. Raises RunError if the home folder is unknown."""
    own, general = os.environ.get("FTCLI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own) if own else (Path(general) if general else Path.home() / ".cache") / "ftcli"
    except RuntimeError as error:
        raise RunError("the home folder is unknown; set FTCLI_CACHE to a folder for downloads") from error


def find_limit() -> int:
    """The most bytes that what was computed may take: $FTCLI_CACHE_LIMIT, such as 20GB or 500 MB, else 20 GB; 0 keeps
    nothing. Raises RecipeError if it is no size."""
    text = os.environ.get("FTCLI_CACHE_LIMIT", "").strip()
    if not text:
        return _USUAL
    if text == "0":
        return 0
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"FTCLI_CACHE_LIMIT: {text!r} is no size; give a number with B, kB, MB, GB or TB, such as 20GB, or 0 to "
            "keep nothing"
        )
    units = {name.lower(): size for name, size in _UNITS.items()}
    return round(float(found[1]) * units[found[2].lower()])


def make_room(needed: int) -> bool:
    """Let so many more bytes fit into the limit and onto the disk, of which 1 GB stays free: chunks leave, oldest use
    first. What this process has used stays, and what any process is filling.

    False, and then nothing leaves, if that cannot be enough: then one does without the cache.
    """
    cache = find_cache()
    chunks = list(list_chunks(cache))
    lack = max(sum(chunk.bytes for chunk in chunks) + needed - find_limit(), needed + _FREE - _measure_free(cache))
    if lack <= 0:
        return True
    old = [chunk for chunk in chunks if chunk.used < BEGUN]
    busy = {folder for folder in {chunk.path.parent for chunk in old} if is_held(folder)}
    old = sorted((chunk for chunk in old if chunk.path.parent not in busy), key=lambda chunk: chunk.used)
    if sum(chunk.bytes for chunk in old) < lack:
        return False
    for chunk in old:
        if lack <= 0:
            break
        try:
            chunk.path.unlink(missing_ok=True)  # another process may make room too
        except PermissionError:  # another user's
            continue
        lack -= chunk.bytes
        if not any(chunk.path.parent.glob(f"*{CHUNK}")):
            remove_folder(chunk.path.parent)
    return lack <= 0


def can_hold(size: int) -> bool:
    """Whether so many bytes fit into the limit and onto the disk when all that other runs have kept leaves. Nothing
    leaves yet."""
    cache = find_cache()
    kept = sum(chunk.bytes for chunk in list_chunks(cache))
    return size <= find_limit() and size + _FREE <= _measure_free(cache) + kept


def list_chunks(cache: Path) -> Iterator[ChunkFile]:
    """All chunks of what was computed, as far as they do not leave meanwhile."""
    for kind in COMPUTED:
        for path in (cache / kind).glob(f"*/*{CHUNK}"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            yield ChunkFile(path, found.st_size, found.st_mtime)


def _measure_free(folder: Path) -> int:
    """The free bytes of the disk that a folder is on, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
