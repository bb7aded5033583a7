"""The digests of image files, remembered for as long as the files stay as they are."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from ftcli.caching.places import find_cache, find_limit
from ftcli.errors import RunError

MEMORY = "images.sqlite"
"""The file in the folder of the cache that holds the digests."""

_AT_ONCE = 1024  # files; a signal has to wait until they are digested
_ASKED = 512  # parameters of a query; SQLite takes 999 in any case
_A_TASK = 32  # files that a thread is given at a time: to give it one takes as long as to digest it
_THREADS = 4
_TICK = 2 * 10**9  # nanoseconds: a file that is younger may change once more and keep its dates
_PATIENCE = 60.0  # seconds to wait for another process that writes
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_Result = TypeVar("_Result")
_Row = tuple[bytes, str | None, bytes | None]  # a file, its stamp and its digest


def digest_images(root: Path, paths: Sequence[str], verify: bool = False) -> list[bytes | None]:
    """The SHA-256 of each file's bytes, 32 of them; `paths` are relative to `root`, or absolute. None for what is no
    file or cannot be read: whoever opens it tells why.

    A digest is remembered in the cache, and taken from there while the file's size, dates, inode and device are the
    same; `verify` digests all again. Raises RunError if the cache cannot be read or written.
    """
    base = os.path.abspath(root)  # noqa: PTH100 - of many paths: these functions are quicker than Path
    places = [os.fsencode(os.path.join(base, path)) for path in paths]  # noqa: PTH118
    found: list[bytes | None] = []
    with closing(_Memory()) as memory, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(places), _AT_ONCE):
            group = places[start : start + _AT_ONCE]
            digests = {} if verify else memory.recall(group)
            fresh = [place for place in dict.fromkeys(group) if place not in digests]
            parts = [fresh[first : first + _A_TASK] for first in range(0, len(fresh), _A_TASK)]
            rows = [row for part in pool.map(_digest_files, parts) for row in part]
            memory.remember((place, stamp, digest) for place, stamp, digest in rows if stamp is not None)
            digests |= {place: digest for place, _, digest in rows if digest is not None}
            found += map(digests.get, group)
    return found


def count_images(cache: Path) -> int:
    """The number of files whose digests a cache remembers; 0 where it remembers none, or is damaged."""
    if not (cache / MEMORY).is_file():
        return 0
    try:
        with closing(sqlite3.connect(cache / MEMORY, timeout=_PATIENCE)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM images").fetchone()[0])
    except sqlite3.Error:
        return 0


class _Memory:
    """The digests in the cache: a table with a row a file, which several processes may use. A damaged one is begun
    anew."""

    def __init__(self) -> None:
        self._path = find_cache() / MEMORY
        self._connection: sqlite3.Connection | None = None

    def recall(self, places: Sequence[bytes]) -> dict[bytes, bytes]:
        """The digests of those files that are as they were."""
        stamps = {place: _look_at(place) for place in places}
        digests: dict[bytes, bytes] = {}
        for start in range(0, len(places), _ASKED):
            asked = places[start : start + _ASKED]
            query = f"SELECT path, stamp, digest FROM images WHERE path IN ({','.join('?' * len(asked))})"
            rows = self._run(lambda memory: memory.execute(query, asked).fetchall())  # noqa: B023 - it runs at once
            digests |= {place: digest for place, stamp, digest in rows if stamp == stamps[place]}
        return digests

    def remember(self, rows: Iterable[_Row]) -> None:
        """Keep the digests of files, in the stead of what was known of them."""
        kept = list(rows)
        if kept:
            self._run(lambda memory: _insert(memory, kept))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _run(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            try:
                return action(self._connect())
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
                self.close()
                for path in (self._path, self._path.with_name(f"{MEMORY}-journal")):
                    path.unlink(missing_ok=True)
                return action(self._connect())
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"{self._path}: cannot be used ({why}); check the folder, its permissions and the space on its disk, "
                "let FTCLI_CACHE name another folder, or set FTCLI_CACHE_LIMIT=0 to keep nothing"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            if find_limit() == 0:  # nothing is to be kept
                self._connection = sqlite3.connect(":memory:")
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(self._path, timeout=_PATIENCE)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, stamp TEXT, digest BLOB) WITHOUT ROWID"
            )
        return self._connection


def _insert(memory: sqlite3.Connection, rows: Sequence[_Row]) -> None:
    with memory:
        memory.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)


def _look_at(place: bytes) -> str | None:
    """What tells that a file is as it was; None for what is no file."""
    try:
        return _stamp(os.stat(place))  # noqa: PTH116
    except OSError:
        return None


def _stamp(found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} {found.st_dev}"


def _digest_files(places: Sequence[bytes]) -> list[_Row]:
    return [_digest_file(place) for place in places]


def _digest_file(place: bytes) -> _Row:
    """A file, its stamp where the digest may be remembered, and its digest, None if it cannot be read."""
    now = time.time_ns()
    if _look_at(place) is None:
        return place, None, None
    try:
        with open(place, "rb") as file:  # noqa: PTH123 - names need not be text
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").digest()
            steady = _stamp(before) == _stamp(os.fstat(file.fileno()))
    except OSError:
        return place, None, None
    young = min(abs(now - before.st_mtime_ns), abs(now - before.st_ctime_ns)) < _TICK
    return place, _stamp(before) if steady and not young else None, digest
