"""A chunk: one file of records with CRC-32 sums, written atomically."""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli import files
from ftcli.caching.eviction import CHUNK_SUFFIX
from ftcli.errors import RunError

KEY_BYTES = 16

# File layout: records, index (one entry for each record), footer (magic bytes, number of entries, CRC-32 of the index).
_ENTRY = struct.Struct("<16sQQI")
_FOOTER = struct.Struct("<8sQI")
_MAGIC = b"ftcli\x001\n"
_ENTRIES = np.dtype([("key", f"S{KEY_BYTES}"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4")])
_ALIGNMENT = 16  # bytes, so that a record can be viewed as any number type

Buffer = bytes | bytearray | memoryview


class Chunk:
    """A chunk that is open for reading; it stays readable after its file is removed.

    `checked` marks the records whose CRC-32 was found correct, `corrupt` those whose CRC-32 was found wrong.
    """

    def __init__(self, path: Path, descriptor: int, num_records: int) -> None:
        file_stat = os.fstat(descriptor)
        self.path = path
        self.size = file_stat.st_size
        self.checked = np.zeros(num_records, dtype=bool)
        self.corrupt = np.zeros(num_records, dtype=bool)
        self._descriptor = descriptor
        self._last_used = file_stat.st_mtime
        self._mapped: mmap.mmap | None = None
        weakref.finalize(self, os.close, descriptor)

    def load_entries(self) -> NDArray[np.void]:
        """Return a structured array with the fields key, offset, length and crc."""
        size = len(self.checked) * _ENTRY.size
        return np.frombuffer(os.pread(self._descriptor, size, self.size - _FOOTER.size - size), dtype=_ENTRIES)

    def check(self, row: int, offset: int, length: int, crc: int) -> bool:
        """Check a record against its CRC-32 and return whether it is intact."""
        is_intact = zlib.crc32(os.pread(self._descriptor, length, offset)) == crc
        (self.checked if is_intact else self.corrupt)[row] = True
        return is_intact

    def copy(self, offset: int, target: memoryview) -> None:
        """Copy a record into `target`. Raises RunError if it cannot be read."""
        try:
            is_complete = os.preadv(self._descriptor, [target], offset) == len(target)
            reason = "the file was truncated"
        except OSError as error:
            is_complete, reason = False, str(error.strerror)
        if not is_complete:
            raise RunError(f"{self.path}: cannot be read ({reason}); check the disk, and remove the file")

    def map(self, offset: int, length: int) -> memoryview:
        """Return a record as a read-only memory map."""
        if self._mapped is None:
            self._mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return memoryview(self._mapped)[offset : offset + length]

    def release(self) -> None:
        """Release the memory of mapped pages in this process; reading maps them again."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def mark_used(self, process_start: float) -> None:
        """Set the file's modification time to now: once after the process start, then at most once a minute."""
        now = time.time()
        if self._last_used < process_start or now - self._last_used > 60.0:
            with suppress(OSError):  # evicted, or owned by another user
                os.utime(self.path)
            self._last_used = now


class ChunkWriter:
    """A chunk that is being written to a temporary file, which is removed if anything fails."""

    def __init__(self, folder: Path) -> None:
        # The time orders records with equal keys; process number and random part make the name unique.
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{CHUNK_SUFFIX}"
        self.start_time = time.monotonic()
        self.size = 0
        self._path = folder / name
        self._temporary = folder / f".{name}.tmp"
        self._index = bytearray()
        try:
            # Unbuffered, because a forked process would write its copy of the buffer.
            self._file = self._temporary.open("xb", buffering=0)
        except OSError as error:
            raise RunError(files.describe_write_error(self._path, 0, error)) from error

    def add(self, key: bytes, record: Buffer) -> None:
        """Append a record. Raises RunError if the disk is full."""
        data = memoryview(record).cast("B")
        self._write(data, self.size)
        self._index += _ENTRY.pack(key, self.size, len(data), zlib.crc32(data))
        self.size += -(-len(data) // _ALIGNMENT) * _ALIGNMENT

    def commit(self) -> Path:
        """Flush the file and rename it to its final name; an empty chunk is discarded.

        May be called again after an interrupt. Raises RunError if the disk is full.
        """
        if not self._index:
            self.discard()
        if not self._temporary.exists():
            return self._path
        num_records = len(self._index) // _ENTRY.size
        self._write(memoryview(self._index + _FOOTER.pack(_MAGIC, num_records, zlib.crc32(self._index))), self.size)
        try:
            # An interrupted record may extend beyond this point.
            os.ftruncate(self._file.fileno(), self.size + len(self._index) + _FOOTER.size)
            os.fsync(self._file.fileno())
            files.commit_file(self._temporary, self._path)
        except (OSError, RunError) as error:
            self._fail(0, error)
        self._file.close()
        return self._path

    def discard(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, data: memoryview, offset: int) -> None:
        size = len(data)
        try:
            while data:  # an almost full disk may accept a part
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            self._fail(size, error)

    def _fail(self, size: int, error: OSError | RunError) -> None:
        self.discard()
        raise RunError(
            files.describe_write_error(self._path, size, error) if isinstance(error, OSError) else str(error)
        )


def open_chunk(path: Path) -> Chunk | None:
    """Open a chunk for reading; return None if it is damaged. Raises OSError if it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.fstat(descriptor).st_size - _FOOTER.size
        footer = os.pread(descriptor, _FOOTER.size, end) if end >= 0 else b""
        magic, num_records, crc = _FOOTER.unpack(footer) if len(footer) == _FOOTER.size else (b"", 0, 0)
        start = end - num_records * _ENTRY.size
        if magic != _MAGIC or start < 0 or zlib.crc32(os.pread(descriptor, end - start, start)) != crc:
            os.close(descriptor)
            return None
    except OSError:
        os.close(descriptor)
        raise
    return Chunk(path, descriptor, num_records)


def count_records(path: Path) -> int:
    """Return the number of records in a chunk file; 0 if it is damaged or missing."""
    try:
        with path.open("rb") as file:
            file.seek(-_FOOTER.size, os.SEEK_END)
            magic, num_records, _ = _FOOTER.unpack(file.read())
    except OSError:
        return 0
    return int(num_records) if magic == _MAGIC else 0


def merge_chunks(chunks: Sequence[Chunk]) -> Path:
    """Merge chunks into one file and remove them; corrupt records are skipped."""
    writer = ChunkWriter(chunks[0].path.parent)
    try:
        for chunk in chunks:
            for row, (key, offset, length, crc) in enumerate(chunk.load_entries().tolist()):
                if chunk.check(row, offset, length, crc):
                    writer.add(key, chunk.map(offset, length))
            chunk.release()
        merged = writer.commit()
    finally:
        writer.discard()  # has no effect after commit
    for chunk in chunks:
        chunk.path.unlink(missing_ok=True)
    return merged
