"""One file of records: written beside its place, checked by sums, there whole or not at all."""

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

# After the records comes the index, an entry a record, and at the end the footer: what tells these files from others,
# the number of entries, and the CRC-32 of the index.
_ENTRY = struct.Struct("<16sQQI")
_FOOTER = struct.Struct("<8sQI")
_MAGIC = b"ftcli\x001\n"
_ENTRIES = np.dtype([("key", f"S{KEY_BYTES}"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4")])
_ALIGNMENT = 16  # bytes, so that a record may be taken for numbers of any kind

Buffer = bytes | bytearray | memoryview


class Chunk:
    """A chunk that is open for reading; it stays readable when its file has left.

    `checked` tells which of its `count` records are known to be what was written, `broken` which are known not to be.
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
        """The fields key, offset, length and crc for each record."""
        size = len(self.checked) * _ENTRY.size
        return np.frombuffer(os.pread(self._descriptor, size, self.size - _FOOTER.size - size), dtype=_ENTRIES)

    def check(self, row: int, offset: int, length: int, crc: int) -> bool:
        """Whether a record is what was written."""
        is_intact = zlib.crc32(os.pread(self._descriptor, length, offset)) == crc
        (self.checked if is_intact else self.corrupt)[row] = True
        return is_intact

    def copy(self, offset: int, target: memoryview) -> None:
        """Copy a record. Raises RunError if it cannot be read any more."""
        try:
            is_complete = os.preadv(self._descriptor, [target], offset) == len(target)
            reason = "it was cut off meanwhile"
        except OSError as error:
            is_complete, reason = False, str(error.strerror)
        if not is_complete:
            raise RunError(f"{self.path}: cannot be read ({reason}); check the disk, and remove the file")

    def map(self, offset: int, length: int) -> memoryview:
        """A record where it lies, read-only."""
        if self._mapped is None:
            self._mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return memoryview(self._mapped)[offset : offset + length]

    def release(self) -> None:
        """Let go of the memory that mapped pages take in this process. They come again when they are read."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def mark_used(self, process_start: float) -> None:
        """Date the file by now, at most once a minute, and once at least since this process has `begun`."""
        now = time.time()
        if self._last_used < process_start or now - self._last_used > 60.0:
            with suppress(OSError):  # it has left, or is another user's, whose use it is that counts
                os.utime(self.path)
            self._last_used = now


class ChunkWriter:
    """A chunk that is being written, under a name of its own that begins with a dot and ends in .tmp. Whatever fails,
    nothing is left of it."""

    def __init__(self, folder: Path) -> None:
        # By time, so that of two records under one key the later is known; by process and chance, so that no two meet.
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{CHUNK_SUFFIX}"
        self.start_time = time.monotonic()
        self.size = 0
        self._path = folder / name
        self._temporary = folder / f".{name}.tmp"
        self._index = bytearray()
        try:
            # Without a buffer, of which processes that are forked meanwhile would have a copy.
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
        """Give the file its name, whole and flushed; without a record there is no file. What a signal has broken off
        may be asked for again. Raises RunError if the disk is full."""
        if not self._index:
            self.discard()
        if not self._temporary.exists():
            return self._path
        num_records = len(self._index) // _ENTRY.size
        self._write(memoryview(self._index + _FOOTER.pack(_MAGIC, num_records, zlib.crc32(self._index))), self.size)
        try:
            # A record that was broken off may reach further.
            os.ftruncate(self._file.fileno(), self.size + len(self._index) + _FOOTER.size)
            os.fsync(self._file.fileno())
            files.commit_file(self._temporary, self._path)
        except (OSError, RunError) as error:
            self._fail(0, error)
        self._file.close()
        return self._path

    def discard(self) -> None:
        """Leave nothing of it."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, data: memoryview, offset: int) -> None:
        size = len(data)
        try:
            while data:  # of a disk that is nearly full a part may be taken
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
    """A chunk for reading; None if it is damaged or not whole. Raises OSError if it has left or cannot be read."""
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
    """The number of records in a chunk; 0 if it is damaged or has left."""
    try:
        with path.open("rb") as file:
            file.seek(-_FOOTER.size, os.SEEK_END)
            magic, num_records, _ = _FOOTER.unpack(file.read())
    except OSError:
        return 0
    return int(num_records) if magic == _MAGIC else 0


def merge_chunks(chunks: Sequence[Chunk]) -> Path:
    """Make one file of several, which leave. Broken records are left out."""
    writer = ChunkWriter(chunks[0].path.parent)
    try:
        for chunk in chunks:
            for row, (key, offset, length, crc) in enumerate(chunk.load_entries().tolist()):
                if chunk.check(row, offset, length, crc):
                    writer.add(key, chunk.map(offset, length))
            chunk.release()
        merged = writer.commit()
    finally:
        writer.discard()  # what is published has another name
    for chunk in chunks:
        chunk.path.unlink(missing_ok=True)
    return merged
