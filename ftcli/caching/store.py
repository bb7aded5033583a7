"""A store of binary records on disk, addressed by content: many readers, one writer at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli import files
from ftcli.caching.chunks import KEY_BYTES, Buffer, Chunk, ChunkWriter, merge_chunks, open_chunk
from ftcli.caching.eviction import CHUNK_SUFFIX, PROCESS_START, evict, get_cache_dir
from ftcli.caching.locks import acquire_lock
from ftcli.caching.record_index import Keys, RecordIndex, build_index, join_keys
from ftcli.errors import RunError

__all__ = ["IDENTITY_FILE", "Key", "Store", "StoreWriter", "make_key"]

logger = logging.getLogger(__name__)

Key = bytes
"""16 bytes from `make_key`."""

IDENTITY_FILE = "identity.json"
"""The file in a store's directory that describes the store."""

CHUNK_BYTES = 64 * 10**6
"""Bytes after which a chunk is committed; more in a large store, so that few files are open."""

CHUNK_SECONDS = 10.0
"""Seconds after which a chunk is committed in any case: the most work that a kill can lose."""

_MAX_CHUNKS = 128  # of CHUNK_BYTES, before chunks grow
_MIN_MERGED_CHUNKS = 8  # chunks of less than half the size that are merged together
_MAX_RESIDENT_BYTES = 32 * 10**6  # bytes of mapped pages in memory
_FAULT_AROUND_BYTES = 64 * 1024  # bytes that the kernel maps around a page fault
_CHECK_BLOCK_SIZE = 10_000  # records checked at a time, because Python integers are large


def make_key(*parts: str | bytes) -> Key:
    """Return the key of a list of parts; different lists have different keys."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class StoreWriter:
    """Adds records to a store; created by `Store.writer`. `size` is the number of bytes in the store."""

    def __init__(self, folder: Path, size: int, contains: Callable[[Sequence[bytes]], list[bool]]) -> None:
        self.contains = contains
        self._folder = folder
        self._size = size
        self._writer: ChunkWriter | None = None

    def add(self, key: bytes, record: Buffer) -> None:
        """Add a record, which is readable after its chunk is committed: after 64 MB or 10 s, or when the context ends.

        Raises RunError if the disk is full; the chunk is then discarded.
        """
        if self._writer is None:
            self._writer = ChunkWriter(self._folder)
        writer = self._writer
        writer.add(key, record)
        if writer.size >= choose_chunk_size(self._size) or time.monotonic() - writer.start_time > CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit the records that were added."""
        if self._writer is not None:
            self._size += self._writer.size
            self._writer.commit()
            self._writer = None
            evict(0)


class Store:
    """The records of one kind (features, pixels) that were computed in one way.

    `identity` describes that way completely, in JSON types; `description` is for people. Several processes may read and
    write one store, each with one thread. A record that was found stays readable while the store is in use, even if its
    file is evicted. A damaged record counts as missing.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any], description: str) -> None:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.folder: Path = get_cache_dir().absolute() / kind / make_key(text).hex()
        self._description = description
        self._identity = json.loads(text)
        self._record_index = build_index([], [])
        self._present_paths: set[Path] = set()
        self._corrupt_paths: set[Path] = set()
        self._mapped_chunks: set[Chunk] = set()
        self._resident_bytes = 0

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        """Return, for each key, whether the store has an intact record.

        Each record is checked against its CRC-32 once. The files of the records are marked as used. Raises RunError if
        the store cannot be read.
        """
        if not keys:
            return []
        self._refresh()
        index, positions, is_found = self._search(join_keys(keys))
        self._mark_used(index, positions[is_found])
        flags: list[bool] = is_found.tolist()
        return flags

    def read(self, key: Key) -> memoryview:
        """Return a record as a read-only memory map. Raises KeyError if it is missing."""
        index, positions = self._locate([key])
        chunk, length = index.chunks[int(index.chunk[positions[0]])], int(index.length[positions[0]])
        self._mapped_chunks.add(chunk)
        self._resident_bytes += length + _FAULT_AROUND_BYTES
        if self._resident_bytes > _MAX_RESIDENT_BYTES:
            self.release()
        return chunk.map(int(index.offset[positions[0]]), length)

    def gather(self, keys: Sequence[Key], rows: NDArray[np.uint8]) -> None:
        """Copy records of one length into `rows`, contiguous uint8 of shape (keys, bytes).

        Raises KeyError if a record is missing, ValueError if it has another length.
        """
        if not keys:
            return
        index, positions = self._locate(keys)
        size = rows.shape[1]
        if (index.length[positions] != size).any():
            raise ValueError(f"{self.folder}: records have {set(index.length[positions].tolist())} bytes, not {size}")
        target = rows.data.cast("B")
        end = 0
        # pread instead of a memory map: a page fault takes several times as long as copying a row, and mapped pages
        # stay in memory until they are released.
        for number, start in zip(index.chunk[positions].tolist(), index.offset[positions].tolist(), strict=True):
            index.chunks[number].copy(start, target[end : end + size])
            end += size

    def release(self) -> None:
        """Release the memory of mapped pages in this process; reading maps them again."""
        for chunk in self._mapped_chunks:
            chunk.release()
        self._mapped_chunks.clear()
        self._resident_bytes = 0

    @contextmanager
    def writer(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[StoreWriter | None]:
        """Open the store for writing, exclusively.

        If another process is writing, report it and wait; yield None if `should_stop` returns True meanwhile. Complete
        records are saved when the context ends, also after an exception. Raises RunError if the disk is full or the
        directory cannot be written.
        """
        has_reported = False

        def wait(owner: str) -> bool:
            nonlocal has_reported
            if not has_reported:
                logger.info(f"{self._description}: another ftcli (process {owner}) is computing this; waiting for it")
                has_reported = True
            time.sleep(0.1)
            return not should_stop()

        with acquire_lock(self.folder, wait) as is_acquired:
            if not is_acquired:
                yield None
                return
            self._clean_up()
            store_writer = StoreWriter(self.folder, sum(chunk.size for chunk in self._list_present()), self.contains)
            try:
                yield store_writer
            finally:
                store_writer.flush()
            self._refresh()
            merge_small_chunks(self._list_present(), should_stop)

    def _refresh(self) -> None:
        """Update the index with the chunks that were added or removed."""
        new_chunks: list[Chunk] = []
        known_paths = {chunk.path for chunk in self._record_index.chunks} | self._corrupt_paths
        vanished: set[Path] = set()
        try:
            while new_paths := (present_paths := _list_chunks(self.folder) - vanished) - known_paths:
                for path in new_paths:
                    known_paths.add(path)
                    try:
                        chunk = open_chunk(path)
                    except FileNotFoundError:  # merged into another chunk or evicted just now
                        vanished.add(path)
                        continue
                    if chunk is None:
                        self._corrupt_paths.add(path)
                    else:
                        new_chunks.append(chunk)
        except OSError as error:
            raise RunError(
                f"{error.filename or self.folder}: cannot be read ({error.strerror}); check its permissions, or set "
                "FTCLI_CACHE to another directory"
            ) from error
        if new_chunks or present_paths != self._present_paths:
            self._present_paths = present_paths
            self._record_index = build_index([*self._record_index.chunks, *new_chunks], present_paths)

    def _search(self, key_array: Keys) -> tuple[RecordIndex, NDArray[np.int64], NDArray[np.bool_]]:
        """Return the entries of keys as `RecordIndex.search` does, after checking each record."""
        while True:
            index = self._record_index
            positions, is_found = index.search(key_array)
            unchecked = positions[is_found & ~index.checked[positions]] if len(index.keys) else positions[:0]
            if not len(unchecked):
                return index, positions, is_found
            if self._check(index, np.unique(unchecked)):
                self._mark_used(index, unchecked)
            else:
                self._record_index = build_index(index.chunks, self._present_paths)

    def _check(self, index: RecordIndex, positions: NDArray[np.int64]) -> bool:
        """Check records against their CRC-32 in file order; return False if one is damaged."""
        all_intact = True
        positions = positions[np.lexsort((index.offset[positions], index.chunk[positions]))]
        for start in range(0, len(positions), _CHECK_BLOCK_SIZE):
            block = positions[start : start + _CHECK_BLOCK_SIZE]
            numbers, *rows = (
                field[block].tolist() for field in (index.chunk, index.row, index.offset, index.length, index.crc)
            )
            is_intact = [index.chunks[number].check(*row) for number, *row in zip(numbers, *rows, strict=True)]
            index.checked[block] = is_intact
            all_intact = all_intact and all(is_intact)
        return all_intact

    def _mark_used(self, index: RecordIndex, positions: NDArray[np.int64]) -> None:
        for number in np.unique(index.chunk[positions]).tolist():
            index.chunks[number].mark_used(PROCESS_START)

    def _locate(self, keys: Sequence[Key]) -> tuple[RecordIndex, NDArray[np.int64]]:
        """Return the entries of keys. Raises KeyError unless every record exists and is intact."""
        key_array = join_keys(keys)
        index, positions, is_found = self._search(key_array)
        if not is_found.all():
            self._refresh()
            index, positions, is_found = self._search(key_array)
        if not is_found.all():
            raise KeyError(f"{self.folder}: has no intact record {keys[int(is_found.argmin())].hex()}")
        return index, positions

    def _clean_up(self) -> None:
        """Remove temporary files of killed writers and damaged chunks; write the identity file."""
        self._refresh()
        for path in (*self.folder.glob(".*.tmp"), *self._corrupt_paths):
            path.unlink(missing_ok=True)
        if not (self.folder / IDENTITY_FILE).exists():
            text = json.dumps({"about": self._description, "identity": self._identity}, ensure_ascii=False, indent=2)
            files.atomic_write(self.folder / IDENTITY_FILE, text)

    def _list_present(self) -> list[Chunk]:
        """Return the chunks whose files exist, oldest first."""
        return [chunk for chunk in self._record_index.chunks if chunk.path in self._present_paths]


def _list_chunks(folder: Path) -> set[Path]:
    try:
        return {path for path in folder.iterdir() if path.suffix == CHUNK_SUFFIX}
    except FileNotFoundError:  # nothing was ever written
        return set()


def choose_chunk_size(store_size: int) -> int:
    """Return the size in bytes at which chunks are committed in a store of this size."""
    return max(CHUNK_BYTES, store_size // _MAX_CHUNKS)


def merge_small_chunks(chunks: Sequence[Chunk], should_stop: Callable[[], bool]) -> None:
    """Merge small chunks, because every reader opens every chunk."""
    chunk_size = choose_chunk_size(sum(chunk.size for chunk in chunks))
    small = [chunk for chunk in chunks if 2 * chunk.size < chunk_size]
    while len(small) >= _MIN_MERGED_CHUNKS and not should_stop():
        group: list[Chunk] = []
        while small and sum(chunk.size for chunk in group) < chunk_size:
            group.append(small.pop(0))
        merge_chunks(group)
