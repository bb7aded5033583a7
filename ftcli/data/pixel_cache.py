"""The pixel cache: images decoded and deterministically transformed once, stored on disk."""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ftcli.caching.file_hashes import hash_files
from ftcli.caching.store import Key, Store, make_key
from ftcli.data.images import CorruptImageError, read_image, read_shape
from ftcli.data.samples import Sample
from ftcli.data.thread_map import ThreadedMap, default_num_threads
from ftcli.data.transforms import ImageTransform
from ftcli.data.workers import WorkerPool
from ftcli.errors import FtcliError
from ftcli.results import ProgressCounter, ProgressTask

_HEADER = struct.Struct("<II")  # height and width, followed by the pixels in row-major RGB
_NUM_SIZE_SAMPLES = 16  # images whose size is read for an estimate
_TASK_BYTES = 4 * 2**20  # bytes of pixels that a worker decodes at a time
_REPORT_INTERVAL = 0.2  # seconds between reports


class PixelCache:
    """The images of a folder after the deterministic steps of a transform, with the same bits as decoding them again.

    Records are identified by the bytes of the image file and the deterministic steps. Only images passed to `fill` can
    be read; evicted ones are decoded again. `rehash` reads every file to identify it. A pickled cache can read by key.
    """

    def __init__(self, root: Path, transform: ImageTransform, rehash: bool = False) -> None:
        self.root = root
        self._transform = transform
        self._rehash = rehash
        self._keys: dict[str, Key] = {}
        self._store = self._open()

    def estimate_bytes(self, samples: Sequence[Sample]) -> int:
        """Estimate the bytes that the images take in the cache, from the sizes of a few readable ones."""
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
        task: ProgressTask,
    ) -> None:
        """Decode and store the images that are missing, in worker processes, or in threads if `num_workers` is 0.

        Images that do not fit in the cache are decoded whenever they are read. Raises CorruptImageError unless corrupt
        images are skipped, RunError if the disk is full or a worker was killed, and StopRequestedError, after which
        the images decoded so far are stored.
        """
        paths = list(dict.fromkeys(sample.path for sample in samples))
        digests = zip(paths, hash_files(self.root, paths, self._rehash), strict=True)
        keys = {path: make_key(digest) for path, digest in digests if digest is not None}
        if self._list_missing(keys):
            with self._store.writer(task) as writer:
                missing = self._list_missing(keys)  # another process may have filled it meanwhile
                bytes_per_image = max(1, self.estimate_bytes(samples) // len(samples))
                if not writer.reserve(bytes_per_image * len(missing)):
                    missing = []  # no room: they are decoded whenever they are read
                images_per_task = max(1, _TASK_BYTES // bytes_per_image)
                counter = ProgressCounter(task, len(paths), len(paths) - len(missing), _REPORT_INTERVAL)
                with closing(self._decode(missing, images_per_task, num_workers)) as records:
                    for path, record in zip(missing, records, strict=True):
                        if isinstance(record, memoryview):
                            writer.add(keys[path], record)
                        elif on_corrupt_image == "error" or not isinstance(record, CorruptImageError):
                            raise record
                        counter.advance()
        is_stored = self._store.contains(list(keys.values()))
        self._keys |= {path: key for (path, key), stored in zip(keys.items(), is_stored, strict=True) if stored}

    def find_key(self, path: str) -> Key | None:
        """Return the key of an image for `read`; None if the image is not stored."""
        return self._keys.get(path)

    def read(self, key: Key) -> Image.Image | None:
        """Return an RGB image after the deterministic steps; None if it was evicted."""
        try:
            record = self._store.read(key)
        except KeyError:
            return None
        height, width = _HEADER.unpack_from(record)
        pixels = np.frombuffer(record, dtype=np.uint8, offset=_HEADER.size)
        return Image.fromarray(pixels.reshape(height, width, 3))

    def __getstate__(self) -> dict[str, Any]:
        # SQLite connections cannot be pickled; a worker receives the keys with each request.
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
        """Yield the record of each image, or its error, in order."""
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
    """The dataset of the decoding workers: the records of some images, concatenated, and the end or error of each."""

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


def _get_record_size(width: int, height: int) -> int:
    return _HEADER.size + 3 * width * height
