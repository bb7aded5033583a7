"""Decoded images on the disk: what training reads again each epoch is decoded once."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ftcli.caching.eviction import evict
from ftcli.caching.file_hashes import hash_files
from ftcli.caching.store import Key, Store, make_key
from ftcli.data.images import CorruptImageError, read_image, read_shape
from ftcli.data.samples import Sample
from ftcli.data.thread_map import ThreadedMap, default_num_threads
from ftcli.data.transforms import ImageTransform
from ftcli.data.workers import WorkerPool
from ftcli.errors import FtcliError
from ftcli.results import Progress, Reporter

_HEADER = struct.Struct("<II")  # height and width; then come the pixels, row by row, red green blue
_NUM_SIZE_SAMPLES = 16  # images whose size is looked at for an estimate
_TASK_BYTES = 4 * 2**20  # bytes of pixels that a process makes at a time
_REPORT_INTERVAL = 0.2  # seconds between reports


class PixelCache:
    """The images of a folder as the fixed steps of a transform leave them, with equal bits to decoding them anew.

    They are known by the content of their files and the fixed steps. Only what `fill` was asked for can be read; what
    has left the disk since is decoded again. `verify` reads every file anew to know it by its bytes. May be sent to
    another process.
    """

    def __init__(self, root: Path, transform: ImageTransform, rehash: bool = False) -> None:
        self.root = root
        self._transform = transform
        self._rehash = rehash
        self._keys: dict[str, Key] = {}
        self._store = self._open()

    def estimate_bytes(self, samples: Sequence[Sample]) -> int:
        """About the bytes that the images of these samples take, from the sizes of a few; broken ones take none."""
        if self._transform.deterministic:
            return len(samples) * _get_record_size(self._transform.size, self._transform.size)
        sampled = samples[:: max(1, len(samples) // _NUM_SIZE_SAMPLES)][:_NUM_SIZE_SAMPLES]
        sizes = []
        for sample in sampled:
            try:
                width, height, _ = read_shape(self.root / sample.path, self._transform.min_decode_size)
            except CorruptImageError:
                continue
            sizes.append(_get_record_size(width, height))
        return len(samples) * sum(sizes) // max(1, len(sampled))

    def fill(
        self,
        samples: Sequence[Sample],
        num_workers: int,
        on_corrupt_image: Literal["error", "skip"],
        reporter: Reporter,
        task: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Decode the images that are not there yet, with `workers` processes, or threads if 0, and keep them if there
        is room; False if `stop` became true, and then what was decoded is kept.

        Broken images are left out, or the first of them is raised as CorruptImageError under "error". Raises RunError if the
        disk is full or a worker was killed.
        """
        paths = list(dict.fromkeys(sample.path for sample in samples))
        digests = zip(paths, hash_files(self.root, paths, self._rehash), strict=True)
        keys = {path: make_key(digest) for path, digest in digests if digest is not None}
        if self._list_missing(keys):
            with self._store.writer(reporter, should_stop) as writer:
                if writer is None:
                    return False
                missing = self._list_missing(keys)  # another process may have filled it meanwhile
                bytes_per_image = max(1, self.estimate_bytes(samples) // len(samples))
                if not evict(bytes_per_image * len(missing)):
                    missing = []  # they are decoded whenever they are read
                images_per_task = max(1, _TASK_BYTES // bytes_per_image)
                progress = _ProgressCounter(task, len(paths), len(missing), reporter)
                with closing(self._decode(missing, images_per_task, num_workers)) as records:
                    for path, record in zip(missing, records, strict=True):
                        if should_stop():
                            return False
                        if isinstance(record, memoryview):
                            writer.add(keys[path], record)
                        elif on_corrupt_image == "error" or not isinstance(record, CorruptImageError):
                            raise record
                        progress.add()
        is_stored = self._store.contains(list(keys.values()))
        self._keys |= {path: key for (path, key), stored in zip(keys.items(), is_stored, strict=True) if stored}
        return True

    def find_key(self, path: str) -> Key | None:
        """The key that `read` takes for an image; None for one that is not there."""
        return self._keys.get(path)

    def read(self, key: Key) -> Image.Image | None:
        """An image after the fixed steps, as RGB; None if it has left the disk."""
        try:
            record = self._store.read(key)
        except KeyError:
            return None
        height, width = _HEADER.unpack_from(record)
        pixels = np.frombuffer(record, dtype=np.uint8, offset=_HEADER.size)
        return Image.fromarray(pixels.reshape(height, width, 3))

    def __getstate__(self) -> dict[str, Any]:
        # Mapped files cannot be sent; and whoever reads is told its keys.
        return {"root": self.root, "_transform": self._transform, "_rehash": False, "_keys": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._store = self._open()

    def _open(self) -> Store:
        return Store("pixels", {"fixed": self._transform.deterministic_fingerprint}, f"decoded images of {self.root}")

    def _list_missing(self, keys: Mapping[str, Key]) -> list[str]:
        is_stored = self._store.contains(list(keys.values()))
        return [path for path, stored in zip(keys, is_stored, strict=True) if not stored]

    def _decode(
        self, paths: Sequence[str], images_per_task: int, num_workers: int
    ) -> Generator[memoryview | FtcliError, None, None]:
        """The record of each image, or why there is none, in their order."""
        decoder = _Decoder(self.root, self._transform)
        tasks = iter([tuple(paths[start : start + images_per_task]) for start in range(0, len(paths), images_per_task)])
        pool = WorkerPool(decoder, num_workers, pin_memory=False) if num_workers else None
        thread_map = ThreadedMap(default_num_threads())
        try:
            for records, ends in pool.run(tasks) if pool else thread_map.map(decoder.__getitem__, tasks):
                data, start = records.numpy().data, 0
                for end in ends:
                    if isinstance(end, int):
                        yield data[start:end]
                        start = end
                    else:
                        yield end
        finally:
            thread_map.close()
            if pool:
                pool.close()


class _Decoder(Dataset[tuple[Tensor, tuple[int | FtcliError, ...]]]):
    """Makes records of some images, one after the other as uint8, with where each ends, or why it is missing."""

    def __init__(self, root: Path, transform: ImageTransform) -> None:
        self.root = root
        self.transform = transform

    def __getitem__(self, paths: tuple[str, ...]) -> tuple[Tensor, tuple[int | FtcliError, ...]]:
        records = bytearray()
        ends: list[int | FtcliError] = []
        for path in paths:
            try:
                image = self.transform.apply_deterministic(read_image(self.root / path, self.transform.min_decode_size))
            except FtcliError as error:
                ends.append(error)
                continue
            records += _HEADER.pack(image.height, image.width)
            records += image.tobytes()
            ends.append(len(records))
        return torch.frombuffer(records, dtype=torch.uint8) if records else torch.empty(0, dtype=torch.uint8), tuple(
            ends
        )


class _ProgressCounter:
    """Tells how many of `total` images are there, of which `missing` had to be decoded."""

    def __init__(self, task: str, total: int, num_missing: int, reporter: Reporter) -> None:
        self._task = task
        self._total = total
        self._reporter = reporter
        self._num_cached = total - num_missing
        self._num_decoded = 0
        self._start_time = self._last_report = time.perf_counter()

    def add(self) -> None:
        """One more is there."""
        self._num_decoded += 1
        now = time.perf_counter()
        if now - self._last_report >= _REPORT_INTERVAL or self._num_cached + self._num_decoded == self._total:
            self._last_report = now
            images_per_second = self._num_decoded / max(now - self._start_time, 1e-9)
            self._reporter.update_progress(
                Progress(self._task, self._num_cached + self._num_decoded, self._total, images_per_second)
            )


def _get_record_size(width: int, height: int) -> int:
    return _HEADER.size + 3 * width * height
