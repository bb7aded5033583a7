"""A record file: an SQLite database of records with their CRC-32."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ftcli import files
from ftcli.caching.eviction import PROCESS_START, RECORDS_SUFFIX
from ftcli.errors import RunError

NewRecord = tuple[bytes, int, bytes]
"""Key, CRC-32 and content of a record."""

_SMALL_PAGES, _LARGE_PAGES = 4_096, 32_768  # bytes
_LOCK_TIMEOUT = 60.0  # seconds; a commit takes less than one
_QUERY_SIZE = 500  # keys in one query
_LOAD_SIZE = 32  # records in one query, which are in memory together
_CACHE_KIB = 8_192  # memory of a connection for pages; with SQLite's 2 MB most pages are read again in each epoch
_CORRUPT_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class CorruptFileError(Exception):
    """A record file is corrupt; all its records count as missing.

    If one record is corrupt, the key index may be corrupt too and miss records, so the entire file is dropped.
    """


class RecordFile:
    """An open record file. It stays readable after the file is removed.

    Only the process that opened it may use it: SQLite forbids the use of a connection in a forked process. All methods
    raise CorruptFileError if the file is corrupt, and RunError if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self._last_used = 0.0
        self._checked = bytearray()  # by record id: 1 if the CRC-32 was verified
        with _translate_errors(path):
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", _LOCK_TIMEOUT, uri=True, check_same_thread=False
            )
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        weakref.finalize(self, self._connection.close)

    @classmethod
    def create(cls, folder: Path, record_size: int) -> RecordFile:
        """Create an empty file for records of about `record_size` bytes. Raises RunError if it cannot be written."""
        # Every name is new: SQLite would apply the journal of a new file to a removed one of the same name.
        path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{RECORDS_SUFFIX}"
        try:
            path.touch(exist_ok=False)
        except OSError as error:
            raise RunError(files.describe_write_error(path, 0, error)) from error
        record_file = cls(path)
        page_size = choose_page_size(record_size)
        with _translate_errors(path, page_size):
            record_file._connection.execute(f"PRAGMA page_size = {page_size}")
            record_file._connection.execute(
                "CREATE TABLE records (id INTEGER PRIMARY KEY, key BLOB UNIQUE, crc INTEGER, content BLOB)"
            )
        return record_file

    def find(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys that have a record. Each record's CRC-32 is verified at its first access."""
        found = set[bytes]()
        unchecked = list[int]()
        for start in range(0, len(keys), _QUERY_SIZE):
            for row_id, key in self._select("id, key", "key", keys[start : start + _QUERY_SIZE]):
                if self._is_checked(row_id):
                    found.add(key)
                else:
                    unchecked.append(row_id)
        found.update(key for key, _ in self._load("id", sorted(unchecked)))
        if found:
            self._mark_used()
        return found

    def read(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and content of the records with these keys, in any order."""
        return self._load("key", keys)

    def write(self, records: Sequence[NewRecord]) -> None:
        """Insert records in one transaction: all of them are saved, or none."""
        with _translate_errors(self.path, sum(len(content) for _, _, content in records)), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO records (key, crc, content) VALUES (?, ?, ?)", records)

    def _load(self, column: Literal["id", "key"], values: Sequence[Any]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(values), _LOAD_SIZE):
            rows = self._select("id, key, crc, content", column, values[start : start + _LOAD_SIZE])
            for row_id, key, crc, content in rows:
                if not self._is_checked(row_id):
                    if not isinstance(content, bytes) or zlib.crc32(content) != crc:
                        raise CorruptFileError(str(self.path))
                    self._checked.extend(bytes(max(0, row_id + 1 - len(self._checked))))
                    self._checked[row_id] = 1
                yield key, content

    def _select(self, columns: str, column: str, values: Sequence[Any]) -> list[Any]:
        placeholders = ",".join("?" * len(values))
        with _translate_errors(self.path):
            query = f"SELECT {columns} FROM records WHERE {column} IN ({placeholders})"
            return self._connection.execute(query, values).fetchall()

    def _is_checked(self, row_id: int) -> bool:
        return row_id < len(self._checked) and self._checked[row_id] == 1

    def _mark_used(self) -> None:
        """Set the file's modification time to now: once after the process start, then at most once a minute."""
        now = time.time()
        if self._last_used < PROCESS_START or now - self._last_used > 60.0:
            with suppress(OSError):  # evicted, or owned by another user
                os.utime(self.path)
            self._last_used = now


def choose_page_size(record_size: int) -> int:
    """Return the page size in bytes that wastes the least space.

    Small records must fit several times into a page; long records continue on overflow pages, which should be full.
    Large pages are faster for images.
    """
    return _SMALL_PAGES if _SMALL_PAGES <= record_size + 64 < 2 * _LARGE_PAGES else _LARGE_PAGES


def count_records(path: Path) -> int:
    """Return the number of records in a file; 0 if it is corrupt, missing, or locked by a writer for 5 s."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM records").fetchone()[0])
    except sqlite3.Error:
        return 0


@contextmanager
def _translate_errors(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Raise SQLite's errors as CorruptFileError or RunError. `num_bytes` is the size of a write; None for a read."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended code
        if code in _CORRUPT_CODES or "no such" in str(error):  # table or column: killed while it was created
            raise CorruptFileError(str(path)) from error
        if num_bytes is None:
            raise RunError(
                f"{path}: cannot be read ({error}); check its permissions, or set FTCLI_CACHE to another directory"
            ) from error
        os_error = OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, str(error))
        raise RunError(files.describe_write_error(path, num_bytes, os_error)) from error
