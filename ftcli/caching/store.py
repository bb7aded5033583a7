"""Records on the disk under keys that say what they are of: mapped for reading, written by one process at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli import files
from ftcli.caching.chunks import KEY_BYTES, Chunk, open_chunk
from ftcli.caching.eviction import CHUNK_SUFFIX, PROCESS_START, get_cache_dir
from ftcli.caching.filling import StoreWriter, merge_small_chunks
from ftcli.caching.locks import acquire_lock
from ftcli.caching.record_index import Keys, RecordIndex, build_index, join_keys
from ftcli.errors import RunError
from ftcli.results import Reporter

__all__ = ["IDENTITY_FILE", "Key", "Store", "StoreWriter", "make_key"]

Key = bytes
"""16 bytes, of `make_key`."""

IDENTITY_FILE = "identity.json"
"""Where a store's folder tells what it is."""

_MAX_RESIDENT_BYTES = 32 * 10**6  # bytes of mapped pages that may lie in memory
_FAULT_AROUND_BYTES = 64 * 1024  # bytes that the system maps around those that are touched
_CHECK_BLOCK_SIZE = 10_000  # records whose places are told in Python's own numbers, which are large


def make_key(*parts: str | bytes) -> Key:
    """The key of what is made of these parts, in this order; no two lists of parts share one."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Store:
    """The records of one kind (features, pixels) that are made in one way, which `identity` tells whole, as plain JSON
    types; `about` says it to people. Several processes may read and fill one store; in each, one thread.

    What was found stays readable as long as the store is in use, even if its file leaves meanwhile. A record that is
    damaged counts as not there.
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
        """Whether the store has a whole record for each key, now. Each is checked against its sum once, and the files
        that hold them are marked as used. Raises RunError if the store cannot be read."""
        if not keys:
            return []
        self._refresh()
        index, positions, is_found = self._search(join_keys(keys))
        self._mark_used(index, positions[is_found])
        flags: list[bool] = is_found.tolist()
        return flags

    def read(self, key: Key) -> memoryview:
        """A record, mapped, read-only. Raises KeyError if it is not there."""
        index, positions = self._locate([key])
        chunk, length = index.chunks[int(index.chunk[positions[0]])], int(index.length[positions[0]])
        self._mapped_chunks.add(chunk)
        self._resident_bytes += length + _FAULT_AROUND_BYTES
        if self._resident_bytes > _MAX_RESIDENT_BYTES:
            self.release()
        return chunk.map(int(index.offset[positions[0]]), length)

    def gather(self, keys: Sequence[Key], rows: NDArray[np.uint8]) -> None:
        """Copy records of one length into `rows`: (keys, bytes), contiguous. Raises KeyError if a record is not there,
        ValueError if it has another length."""
        if not keys:
            return
        index, positions = self._locate(keys)
        size = rows.shape[1]
        if (index.length[positions] != size).any():
            raise ValueError(f"{self.folder}: records have {set(index.length[positions].tolist())} bytes, not {size}")
        target = rows.data.cast("B")
        end = 0
        # Read, not mapped: a row that is touched through a map costs a page fault, which takes several times as long
        # as to copy it, and the pages lie in memory until they are let go.
        for number, start in zip(index.chunk[positions].tolist(), index.offset[positions].tolist(), strict=True):
            index.chunks[number].copy(start, target[end : end + size])
            end += size

    def release(self) -> None:
        """Let go of the memory that mapped pages take in this process. They come again when they are read."""
        for chunk in self._mapped_chunks:
            chunk.release()
        self._mapped_chunks.clear()
        self._resident_bytes = 0

    @contextmanager
    def writer(
        self, reporter: Reporter, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[StoreWriter | None]:
        """Be the only one that adds to the store. While another does, wait for it, which the reporter is told; None if
        `stop` became true meanwhile. What is whole when the context ends is kept, however it ends.

        Raises RunError if the disk is full or the folder cannot be written.
        """
        has_reported = False

        def wait(owner: str) -> bool:
            nonlocal has_reported
            if not has_reported:
                reporter.info(f"{self._description}: another ftcli (process {owner}) is computing this; waiting for it")
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
        """Learn of the chunks that have come or left since."""
        new_chunks: list[Chunk] = []
        known_paths = {chunk.path for chunk in self._record_index.chunks} | self._corrupt_paths
        vanished: set[Path] = set()
        try:
            while new_paths := (present_paths := _list_chunks(self.folder) - vanished) - known_paths:
                for path in new_paths:
                    known_paths.add(path)
                    try:
                        chunk = open_chunk(path)
                    except FileNotFoundError:  # it left at this moment; what was merged into another is there now
                        vanished.add(path)
                        continue
                    if chunk is None:
                        self._corrupt_paths.add(path)
                    else:
                        new_chunks.append(chunk)
        except OSError as error:
            raise RunError(
                f"{error.filename or self.folder}: cannot be read ({error.strerror}); check its permissions, or let "
                "FTCLI_CACHE name another folder"
            ) from error
        if new_chunks or present_paths != self._present_paths:
            self._present_paths = present_paths
            self._record_index = build_index([*self._record_index.chunks, *new_chunks], present_paths)

    def _search(self, key_array: Keys) -> tuple[RecordIndex, NDArray[np.int64], NDArray[np.bool_]]:
        """The entries of records, as `RecordIndex.search` gives them, all of which are whole."""
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
        """Check records against their sums, in the order in which they lie. False if one is broken."""
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
        """The entries of records that are all there, and whole."""
        key_array = join_keys(keys)
        index, positions, is_found = self._search(key_array)
        if not is_found.all():
            self._refresh()
            index, positions, is_found = self._search(key_array)
        if not is_found.all():
            raise KeyError(f"{self.folder}: has no whole record {keys[int(is_found.argmin())].hex()}")
        return index, positions

    def _clean_up(self) -> None:
        """Take away what other fillers left, none of which is at work, and what is damaged; tell what the store is."""
        self._refresh()
        for path in (*self.folder.glob(".*.tmp"), *self._corrupt_paths):
            path.unlink(missing_ok=True)
        if not (self.folder / IDENTITY_FILE).exists():
            text = json.dumps({"about": self._description, "identity": self._identity}, ensure_ascii=False, indent=2)
            files.atomic_write(self.folder / IDENTITY_FILE, text)

    def _list_present(self) -> list[Chunk]:
        """The chunks whose files have not left, oldest first."""
        return [chunk for chunk in self._record_index.chunks if chunk.path in self._present_paths]


def _list_chunks(folder: Path) -> set[Path]:
    try:
        return {path for path in folder.iterdir() if path.suffix == CHUNK_SUFFIX}
    except FileNotFoundError:  # nothing was ever kept in it
        return set()
