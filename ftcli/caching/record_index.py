"""The index of the records in several chunks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli.caching.chunks import KEY_BYTES, Chunk

Keys = NDArray[np.bytes_]
"""Keys of 16 bytes. NumPy strips trailing zeros from a single element, but not in comparisons."""


@dataclass(frozen=True)
class RecordIndex:
    """One entry for each record, sorted by key: chunk number, row in the chunk, byte offset, length, CRC-32, and
    whether the CRC-32 was checked."""

    chunks: tuple[Chunk, ...]
    keys: Keys
    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    crc: NDArray[np.uint32]
    checked: NDArray[np.bool_]

    def search(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the position of each key and whether it exists; the position of a missing key is arbitrary."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        positions = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return positions, self.keys[positions] == keys


def join_keys(keys: Sequence[bytes]) -> Keys:
    """Return keys as one array."""
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")


def build_index(chunks: Sequence[Chunk], present_paths: Collection[Path]) -> RecordIndex:
    """Build the index of chunks.

    The last intact record of a key wins. A chunk without a file and without a record in the index is dropped.
    """
    chunks = sorted(chunks, key=lambda chunk: (chunk.path in present_paths, chunk.path))
    counts = [len(chunk.checked) for chunk in chunks]
    total = sum(counts)
    # One column at a time, to use little more memory than the index itself.
    dtypes = {"key": f"S{KEY_BYTES}", "offset": np.int64, "length": np.int64, "crc": np.uint32}
    columns = {name: np.empty(total, dtype=dtype) for name, dtype in dtypes.items()}
    end = 0
    for chunk, count in zip(chunks, counts, strict=True):
        chunk_entries = chunk.load_entries()
        for name, column in columns.items():
            column[end : end + count] = chunk_entries[name]
        end += count
    columns["chunk"] = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    columns["row"] = _concatenate([np.arange(count, dtype=np.int32) for count in counts], np.int32)
    columns["checked"] = _concatenate([chunk.checked for chunk in chunks], np.bool_)
    order = np.flatnonzero(~_concatenate([chunk.corrupt for chunk in chunks], np.bool_))
    order = order[np.argsort(columns["key"][order], kind="stable")]
    keys = columns["key"][order]
    order = order[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]
    del keys
    for name, column in columns.items():
        columns[name] = column[order]
    in_use = np.bincount(columns["chunk"], minlength=len(chunks)) > 0
    retained = [position for position, chunk in enumerate(chunks) if in_use[position] or chunk.path in present_paths]
    new_chunk_numbers = np.zeros(len(chunks), dtype=np.int32)
    new_chunk_numbers[retained] = np.arange(len(retained))
    columns["chunk"] = new_chunk_numbers[columns["chunk"]]
    return RecordIndex(chunks=tuple(chunks[position] for position in retained), keys=columns.pop("key"), **columns)


def _concatenate(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([*parts, np.zeros(0, dtype=dtype)])
