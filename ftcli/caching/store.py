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

from ftcli import storage
from ftcli.caching.chunks import KEY_BYTES, Chunk, open_chunk
from ftcli.caching.filling import Filler, merge_small
from ftcli.caching.index import Index, Keys, join_keys, make_index
from ftcli.caching.locks import hold
from ftcli.caching.places import BEGUN, CHUNK, find_cache
from ftcli.errors import RunError
from ftcli.results import Reporter

__all__ = ["IDENTITY", "Filler", "Key", "Store", "make_key"]

Key = bytes
"""16 bytes, of `make_key`."""

IDENTITY = "identity.json"
"""Where a store's folder tells what it is."""

_RESIDENT = 32 * 10**6  # bytes of mapped pages that may lie in memory
_AROUND = 64 * 1024  # bytes that the system maps around those that are touched
_AT_ONCE = 10_000  # records whose places are told in Python's own numbers, which are large


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

    def __init__(self, kind: str, identity: Mapping[str, Any], about: str) -> None:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.folder: Path = find_cache().absolute() / kind / make_key(text).hex()
        self._about = about
        self._identity = json.loads(text)
        self._index = make_index([], [])
        self._present: set[Path] = set()
        self._damaged: set[Path] = set()
        self._touched: set[Chunk] = set()
        self._resident = 0

    def find(self, keys: Sequence[Key]) -> list[bool]:
        """Whether the store has a whole record for each key, now. Each is checked against its sum once, and the files
        that hold them are marked as used. Raises RunError if the store cannot be read."""
        if not keys:
            return []
        self._refresh()
        index, places, there = self._search(join_keys(keys))
        self._mark_used(index, places[there])
        answer: list[bool] = there.tolist()
        return answer

    def read(self, key: Key) -> memoryview:
        """A record, mapped, read-only. Raises KeyError if it is not there."""
        index, places = self._locate([key])
        chunk, length = index.chunks[int(index.chunk[places[0]])], int(index.length[places[0]])
        self._touched.add(chunk)
        self._resident += length + _AROUND
        if self._resident > _RESIDENT:
            self.release()
        return chunk.map(int(index.offset[places[0]]), length)

    def gather(self, keys: Sequence[Key], rows: NDArray[np.uint8]) -> None:
        """Copy records of one length into `rows`: (keys, bytes), contiguous. Raises KeyError if a record is not there,
        ValueError if it has another length."""
        if not keys:
            return
        index, places = self._locate(keys)
        size = rows.shape[1]
        if (index.length[places] != size).any():
            raise ValueError(f"{self.folder}: records have {set(index.length[places].tolist())} bytes, not {size}")
        target = rows.data.cast("B")
        end = 0
        # Read, not mapped: a row that is touched through a map costs a page fault, which takes several times as long
        # as to copy it, and the pages lie in memory until they are let go.
        for number, start in zip(index.chunk[places].tolist(), index.offset[places].tolist(), strict=True):
            index.chunks[number].copy(start, target[end : end + size])
            end += size

    def release(self) -> None:
        """Let go of the memory that mapped pages take in this process. They come again when they are read."""
        for chunk in self._touched:
            chunk.release()
        self._touched.clear()
        self._resident = 0

    @contextmanager
    def fill(self, reporter: Reporter, stop: Callable[[], bool] = lambda: False) -> Iterator[Filler | None]:
        """Be the only one that adds to the store. While another does, wait for it, which the reporter is told; None if
        `stop` became true meanwhile. What is whole when the context ends is kept, however it ends.

        Raises RunError if the disk is full or the folder cannot be written.
        """
        told = False

        def wait(owner: str) -> bool:
            nonlocal told
            if not told:
                reporter.say(f"{self._about}: another ftcli (process {owner}) is computing this; waiting for it")
                told = True
            time.sleep(0.1)
            return not stop()

        with hold(self.folder, wait) as held:
            if not held:
                yield None
                return
            self._prepare()
            filler = Filler(self.folder, sum(chunk.bytes for chunk in self._list_present()), self.find)
            try:
                yield filler
            finally:
                filler.finish()
            self._refresh()
            merge_small(self._list_present(), stop)

    def _refresh(self) -> None:
        """Learn of the chunks that have come or left since."""
        fresh: list[Chunk] = []
        known = {chunk.path for chunk in self._index.chunks} | self._damaged
        gone: set[Path] = set()
        try:
            while new := (present := _list_chunks(self.folder) - gone) - known:
                for path in new:
                    known.add(path)
                    try:
                        chunk = open_chunk(path)
                    except FileNotFoundError:  # it left at this moment; what was merged into another is there now
                        gone.add(path)
                        continue
                    if chunk is None:
                        self._damaged.add(path)
                    else:
                        fresh.append(chunk)
        except OSError as error:
            raise RunError(
                f"{error.filename or self.folder}: cannot be read ({error.strerror}); check its permissions, or let "
                "FTCLI_CACHE name another folder"
            ) from error
        if fresh or present != self._present:
            self._present = present
            self._index = make_index([*self._index.chunks, *fresh], present)

    def _search(self, wanted: Keys) -> tuple[Index, NDArray[np.int64], NDArray[np.bool_]]:
        """The entries of records, as `Index.search` gives them, all of which are whole."""
        while True:
            index = self._index
            places, there = index.search(wanted)
            fresh = places[there & ~index.checked[places]] if len(index.keys) else places[:0]
            if not len(fresh):
                return index, places, there
            if self._check(index, np.unique(fresh)):
                self._mark_used(index, fresh)
            else:
                self._index = make_index(index.chunks, self._present)

    def _check(self, index: Index, places: NDArray[np.int64]) -> bool:
        """Check records against their sums, in the order in which they lie. False if one is broken."""
        whole = True
        places = places[np.lexsort((index.offset[places], index.chunk[places]))]
        for start in range(0, len(places), _AT_ONCE):
            block = places[start : start + _AT_ONCE]
            numbers, *rows = (
                field[block].tolist() for field in (index.chunk, index.row, index.offset, index.length, index.crc)
            )
            right = [index.chunks[number].check(*row) for number, *row in zip(numbers, *rows, strict=True)]
            index.checked[block] = right
            whole = whole and all(right)
        return whole

    def _mark_used(self, index: Index, places: NDArray[np.int64]) -> None:
        for number in np.unique(index.chunk[places]).tolist():
            index.chunks[number].mark_used(BEGUN)

    def _locate(self, keys: Sequence[Key]) -> tuple[Index, NDArray[np.int64]]:
        """The entries of records that are all there, and whole."""
        wanted = join_keys(keys)
        index, places, there = self._search(wanted)
        if not there.all():
            self._refresh()
            index, places, there = self._search(wanted)
        if not there.all():
            raise KeyError(f"{self.folder}: has no whole record {keys[int(there.argmin())].hex()}")
        return index, places

    def _prepare(self) -> None:
        """Take away what other fillers left, none of which is at work, and what is damaged; tell what the store is."""
        self._refresh()
        for path in (*self.folder.glob(".*.tmp"), *self._damaged):
            path.unlink(missing_ok=True)
        if not (self.folder / IDENTITY).exists():
            text = json.dumps({"about": self._about, "identity": self._identity}, ensure_ascii=False, indent=2)
            storage.replace_file(self.folder / IDENTITY, text)

    def _list_present(self) -> list[Chunk]:
        """The chunks whose files have not left, oldest first."""
        return [chunk for chunk in self._index.chunks if chunk.path in self._present]


def _list_chunks(folder: Path) -> set[Path]:
    try:
        return {path for path in folder.iterdir() if path.suffix == CHUNK}
    except FileNotFoundError:  # nothing was ever kept in it
        return set()
