"""How records are added to a folder of chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ftcli.caching.chunks import Buffer, Chunk, ChunkWriter, merge_chunks
from ftcli.caching.eviction import evict

CHUNK_BYTES = 64 * 10**6
"""Bytes after which a chunk is published; more in a folder of very many, so that the open files stay few."""

CHUNK_SECONDS = 10.0
"""Seconds after which it is published in any case: the most work that a kill loses."""

_MAX_CHUNKS = 128  # of that size, before they grow
_MIN_MERGED_CHUNKS = 8  # so many of less than half that size are merged


class StoreWriter:
    """What adds records to a store; `Store.fill` gives it. `size` are the bytes that are there, and `find` is the
    store's own, for what others have added meanwhile."""

    def __init__(self, folder: Path, size: int, contains: Callable[[Sequence[bytes]], list[bool]]) -> None:
        self.contains = contains
        self._folder = folder
        self._size = size
        self._writer: ChunkWriter | None = None

    def add(self, key: bytes, record: Buffer) -> None:
        """Add a record. It can be found when its chunk is published: after 64 MB or 10 s, and when the context ends.
        Raises RunError if the disk is full; then nothing is left of the chunk."""
        if self._writer is None:
            self._writer = ChunkWriter(self._folder)
        writer = self._writer
        writer.add(key, record)
        if writer.size >= choose_chunk_size(self._size) or time.monotonic() - writer.start_time > CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Publish what was added so far."""
        if self._writer is not None:
            self._size += self._writer.size
            self._writer.commit()
            self._writer = None
            evict(0)


def choose_chunk_size(store_size: int) -> int:
    """The bytes of a chunk in a folder that holds so many."""
    return max(CHUNK_BYTES, store_size // _MAX_CHUNKS)


def merge_small_chunks(chunks: Sequence[Chunk], should_stop: Callable[[], bool]) -> None:
    """Make few chunks of many small ones: each costs every reader an open file."""
    chunk_size = choose_chunk_size(sum(chunk.size for chunk in chunks))
    small = [chunk for chunk in chunks if 2 * chunk.size < chunk_size]
    while len(small) >= _MIN_MERGED_CHUNKS and not should_stop():
        group: list[Chunk] = []
        while small and sum(chunk.size for chunk in group) < chunk_size:
            group.append(small.pop(0))
        merge_chunks(group)
