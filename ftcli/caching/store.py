"""A store of binary records on disk, addressed by content: many readers, one writer at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli import files
from ftcli.caching.eviction import RECORDS_SUFFIX, acquire_lock, evict, get_cache_dir, get_cache_limit
from ftcli.caching.record_file import CorruptFileError, NewRecord, RecordFile
from ftcli.errors import RunError, StopRequestedError
from ftcli.results import ProgressTask

__all__ = ["IDENTITY_FILE", "KEY_BYTES", "Key", "Store", "StoreWriter", "make_key"]

logger = logging.getLogger(__name__)

Key = bytes
"""16 bytes from `make_key`."""

KEY_BYTES = 16

IDENTITY_FILE = "identity.json"
"""The file in a store's directory that describes the store."""

COMMIT_BYTES = 8 * 10**6
"""Bytes of records after which they are committed; until then they are in memory."""

COMMIT_SECONDS = 10.0
"""Seconds after which the next `add` commits. A killed process loses the records added since the last commit."""

MAX_FILE_BYTES = 2 * 10**9
"""Size at which a store starts a new file, because eviction removes entire files."""

MEMORY_BYTES = 16 * 10**6
"""Bytes of records that a store retains in memory: the features of a few thousand images."""

_MIN_FILES_IN_LIMIT = 8  # files smaller than MAX_FILE_BYTES that fit in a small cache


def make_key(*parts: str | bytes) -> Key:
    """Return the key of a list of parts; different lists have different keys."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Store:
    """Records of one kind (features or pixels) computed with the same settings.

    `identity` contains all settings, as JSON types; `description` is shown to users. Several processes may read and
    write a store, each with one thread. A record that was found stays readable in this process even if its file is
    evicted. A corrupt file is ignored by readers and removed by the next writer; its records count as missing.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any], description: str) -> None:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.folder: Path = get_cache_dir().absolute() / kind / make_key(text).hex()
        self._description = description
        self._identity = json.loads(text)
        self._files: list[RecordFile] = []  # oldest first
        self._corrupt_paths: set[Path] = set()
        self._in_memory: dict[Key, bytes] = {}
        self._bytes_in_memory = 0

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        """Return whether each key has a record. Each record's CRC-32 is verified at its first access.

        The files of the records are marked as used. Raises RunError if the store cannot be read.
        """
        if not keys:
            return []
        self._open_new_files()
        found = set[bytes]()
        for record_file in reversed(self._files):
            with self._ignore_if_corrupt(record_file):
                found |= record_file.find([key for key in keys if key not in found])
        return [key in found for key in keys]

    def read(self, key: Key) -> bytes:
        """Return a record. Raises KeyError if it is missing."""
        return next(self._read([key]))[1]

    def gather(self, keys: Sequence[Key], rows: NDArray[np.uint8]) -> None:
        """Copy records of one length into `rows`, contiguous uint8 of shape (keys, bytes).

        Raises KeyError if a record is missing, ValueError if it has another length.
        """
        if not keys:
            return
        size, target = rows.shape[1], rows.data.cast("B")
        starts: dict[Key, list[int]] = {}
        for start, key in zip(range(0, rows.nbytes, size), keys, strict=True):
            starts.setdefault(key, []).append(start)
        for key, content in self._read(list(starts)):
            if len(content) != size:
                raise ValueError(f"{self.folder}: a record has {len(content)} bytes, not {size}")
            for start in starts[key]:
                target[start : start + size] = content

    @contextmanager
    def writer(self, task: ProgressTask) -> Iterator[StoreWriter]:
        """Open the store for writing, exclusively.

        If another process is writing, report it and wait; raise StopRequestedError if the task should stop meanwhile.
        Complete records are saved when the context ends, also after an exception. Raises RunError if the disk is full
        or the directory cannot be written.
        """
        has_reported = False

        def wait(owner: str) -> bool:
            nonlocal has_reported
            if not has_reported:
                logger.info(f"{self._description}: another ftcli (process {owner}) is computing this; waiting for it")
                has_reported = True
            time.sleep(0.1)
            return not task.should_stop()

        with acquire_lock(self.folder, wait) as is_acquired:
            if not is_acquired:
                raise StopRequestedError(task.name)
            self._clean_up()
            store_writer = StoreWriter(self)
            try:
                yield store_writer
            finally:
                store_writer.flush()

    def append(self, records: Sequence[NewRecord]) -> None:
        """Append records to the newest file, or to a new one if it is full. Call only from `StoreWriter`."""
        self._open_new_files()
        current = self._files[-1] if self._files else None
        limit = min(MAX_FILE_BYTES, get_cache_limit() // _MIN_FILES_IN_LIMIT)
        if current is None or not current.path.exists() or current.path.stat().st_size >= limit:
            current = RecordFile.create(self.folder, len(records[0][2]))
            self._files.append(current)
        try:
            current.write(records)
        except CorruptFileError as error:
            current.path.unlink(missing_ok=True)
            raise RunError(f"{current.path}: is corrupt and was removed; run the command again") from error

    def _read(self, keys: Sequence[Key]) -> Iterator[tuple[Key, bytes]]:
        """Yield key and content of each record, in any order. Raises KeyError if one is missing."""
        missing = dict.fromkeys(keys)
        for key in keys:
            content = self._in_memory.get(key)
            if content is not None:
                missing.pop(key, None)
                yield key, content
        for is_retry in (False, True):
            if not missing:
                return
            if is_retry or self._was_opened_in_parent():
                self._open_new_files()
            for record_file in reversed(self._files):
                with self._ignore_if_corrupt(record_file):
                    for key, content in record_file.read(list(missing)):
                        del missing[key]
                        self._remember(key, content)
                        yield key, content
        if not missing:
            return
        raise KeyError(f"{self.folder}: has no record {next(iter(missing)).hex()}")

    def _remember(self, key: Key, content: bytes) -> None:
        """Retain a record in memory while there is room: SQLite takes several times as long as a dictionary."""
        if self._bytes_in_memory + len(content) <= MEMORY_BYTES:
            self._in_memory[key] = content
            self._bytes_in_memory += len(content)

    def _was_opened_in_parent(self) -> bool:
        return any(record_file.pid != os.getpid() for record_file in self._files)

    def _open_new_files(self) -> None:
        """Open the files that were added. Files that were removed stay open."""
        if self._was_opened_in_parent():
            _inherited_files.extend(self._files)
            self._files = []
        known_paths = {record_file.path for record_file in self._files} | self._corrupt_paths
        try:
            paths = [path for path in self.folder.iterdir() if path.suffix == RECORDS_SUFFIX and path.is_file()]
        except FileNotFoundError:  # nothing was ever written
            return
        except OSError as error:
            raise RunError(
                f"{error.filename}: cannot be read ({error.strerror}); check its permissions, or set FTCLI_CACHE to "
                "another directory"
            ) from error
        for path in sorted(paths):
            if path in known_paths:
                continue
            try:
                self._files.append(RecordFile(path))
            except CorruptFileError:
                self._corrupt_paths.add(path)
            except RunError:
                if path.exists():  # otherwise it was evicted after the listing
                    raise

    @contextmanager
    def _ignore_if_corrupt(self, record_file: RecordFile) -> Iterator[None]:
        """Ignore a file from now on if the context finds that it is corrupt."""
        try:
            yield
        except CorruptFileError:
            self._corrupt_paths.add(record_file.path)
            self._files.remove(record_file)

    def _clean_up(self) -> None:
        """Remove corrupt files; write the identity file."""
        self.contains([bytes(KEY_BYTES)])  # reads every file, which finds corrupt ones
        for path in self._corrupt_paths:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        if not (self.folder / IDENTITY_FILE).exists():
            text = json.dumps({"about": self._description, "identity": self._identity}, ensure_ascii=False, indent=2)
            files.atomic_write(self.folder / IDENTITY_FILE, text)


_inherited_files: list[RecordFile] = []
"""Files that a parent process opened. They are never closed: SQLite forbids that in a forked process."""


class StoreWriter:
    """Adds records to a store; created by `Store.writer`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: list[NewRecord] = []
        self._size = 0
        self._start_time = 0.0

    def reserve(self, num_bytes: int) -> bool:
        """Return whether `num_bytes` fit, after evicting files as `evict` does."""
        return evict(num_bytes, self._store.folder)

    def add(self, key: Key, record: bytes | bytearray | memoryview) -> None:
        """Add a record. It is readable after its commit: by the `add` after 8 MB or 10 s, or when the context ends.

        A killed process loses the records added since the last commit. So does a full disk, which raises RunError.
        """
        if not self._records:
            self._start_time = time.monotonic()
        content = bytes(record)
        self._records.append((key, zlib.crc32(content), content))
        self._size += len(content)
        if self._size >= COMMIT_BYTES or time.monotonic() - self._start_time > COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit the records that were added."""
        if self._records:
            try:
                self._store.append(self._records)
            except RunError:
                self._records, self._size = [], 0
                raise
            self._records, self._size = [], 0
            self.reserve(0)
