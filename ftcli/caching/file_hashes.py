"""SHA-256 digests of image files, stored in a database until the files change."""

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

from ftcli.caching.eviction import get_cache_dir, get_cache_limit
from ftcli.errors import RunError

DATABASE_FILE = "images.sqlite"
"""The database file in the cache directory."""

_BATCH_SIZE = 1024  # files; a signal is handled after each batch
_QUERY_SIZE = 512  # parameters of a query; every SQLite accepts 999
_FILES_PER_TASK = 32  # files in a task of a thread; starting a task takes as long as hashing one file
_NUM_THREADS = 4
_MIN_AGE_NS = 2 * 10**9  # nanoseconds; a younger file may change again without a new modification time
_LOCK_TIMEOUT = 60.0  # seconds to wait for a writing process
_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_Result = TypeVar("_Result")
_HashRow = tuple[bytes, str | None, bytes | None]  # path, stamp, digest


def hash_files(root: Path, paths: Sequence[str], rehash: bool = False) -> list[bytes | None]:
    """Return the SHA-256 of each file (32 bytes), or None if it is not a file or cannot be read.

    `paths` are relative to `root`, or absolute. A digest is read from the database if size, times, inode and device of
    the file are unchanged; `rehash` computes all digests again. Raises RunError if the database cannot be read or
    written.
    """
    base = os.path.abspath(root)  # noqa: PTH100 - faster than Path for many paths
    abs_paths = [os.fsencode(os.path.join(base, path)) for path in paths]  # noqa: PTH118
    hashes: list[bytes | None] = []
    with closing(_HashDatabase()) as database, ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(abs_paths), _BATCH_SIZE):
            batch = abs_paths[start : start + _BATCH_SIZE]
            digests = {} if rehash else database.load(batch)
            missing = [abs_path for abs_path in dict.fromkeys(batch) if abs_path not in digests]
            tasks = [missing[offset : offset + _FILES_PER_TASK] for offset in range(0, len(missing), _FILES_PER_TASK)]
            rows = [row for task in pool.map(_hash_batch, tasks) for row in task]
            database.save((abs_path, stamp, digest) for abs_path, stamp, digest in rows if stamp is not None)
            digests |= {abs_path: digest for abs_path, _, digest in rows if digest is not None}
            hashes += map(digests.get, batch)
    return hashes


def count_hashes(cache: Path) -> int:
    """Return the number of digests in the database; 0 if it is missing or corrupt."""
    if not (cache / DATABASE_FILE).is_file():
        return 0
    try:
        with closing(sqlite3.connect(cache / DATABASE_FILE, timeout=_LOCK_TIMEOUT)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM images").fetchone()[0])
    except sqlite3.Error:
        return 0


class _HashDatabase:
    """The table of digests, shared by several processes. A corrupt database is created again."""

    def __init__(self) -> None:
        self._path = get_cache_dir() / DATABASE_FILE
        self._connection: sqlite3.Connection | None = None

    def load(self, abs_paths: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the digests of the files that are unchanged."""
        stamps = {abs_path: _read_stamp(abs_path) for abs_path in abs_paths}
        digests: dict[bytes, bytes] = {}
        for start in range(0, len(abs_paths), _QUERY_SIZE):
            queried = abs_paths[start : start + _QUERY_SIZE]
            query = f"SELECT path, stamp, digest FROM images WHERE path IN ({','.join('?' * len(queried))})"
            rows = self._run(lambda connection: connection.execute(query, queried).fetchall())  # noqa: B023 - called immediately
            digests |= {abs_path: digest for abs_path, stamp, digest in rows if stamp == stamps[abs_path]}
        return digests

    def save(self, rows: Iterable[_HashRow]) -> None:
        """Insert or replace the digests of files."""
        new_rows = list(rows)
        if new_rows:
            self._run(lambda connection: _insert(connection, new_rows))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _run(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            try:
                return action(self._connect())
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _CORRUPT_CODES:
                    raise
                self.close()
                for path in (self._path, self._path.with_name(f"{DATABASE_FILE}-journal")):
                    path.unlink(missing_ok=True)
                return action(self._connect())
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"{self._path}: cannot be used ({reason}); check the directory, its permissions and the free disk "
                "space, set FTCLI_CACHE to another directory, or disable the cache with FTCLI_CACHE_LIMIT=0"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            if get_cache_limit() == 0:  # the cache is disabled
                self._connection = sqlite3.connect(":memory:")
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, stamp TEXT, digest BLOB) WITHOUT ROWID"
            )
        return self._connection


def _insert(connection: sqlite3.Connection, rows: Sequence[_HashRow]) -> None:
    with connection:
        connection.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)


def _read_stamp(abs_path: bytes) -> str | None:
    """Return a string that changes when the file changes; None if it is not a regular file."""
    try:
        return _make_stamp(os.stat(abs_path))  # noqa: PTH116
    except OSError:
        return None


def _make_stamp(stat_result: os.stat_result) -> str | None:
    if not stat.S_ISREG(stat_result.st_mode):
        return None
    times = f"{stat_result.st_mtime_ns} {stat_result.st_ctime_ns}"
    return f"{stat_result.st_size} {times} {stat_result.st_ino} {stat_result.st_dev}"


def _hash_batch(abs_paths: Sequence[bytes]) -> list[_HashRow]:
    return [_hash_file(abs_path) for abs_path in abs_paths]


def _hash_file(abs_path: bytes) -> _HashRow:
    """Return path, stamp (None if the digest must not be stored) and digest (None if the file cannot be read)."""
    now = time.time_ns()
    if _read_stamp(abs_path) is None:
        return abs_path, None, None
    try:
        with open(abs_path, "rb") as file:  # noqa: PTH123 - the path is bytes
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").digest()
            is_unchanged = _make_stamp(before) == _make_stamp(os.fstat(file.fileno()))
    except OSError:
        return abs_path, None, None
    is_recent = min(abs(now - before.st_mtime_ns), abs(now - before.st_ctime_ns)) < _MIN_AGE_NS
    return abs_path, _make_stamp(before) if is_unchanged and not is_recent else None, digest
