"""From an image file, or what is kept of it, to a batch of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ftcli import runtime
from ftcli.caching.store import Key
from ftcli.data.batches import Batch, RngKey, SkippedImage
from ftcli.data.changes import BatchTransformParams
from ftcli.data.dataset import Sample
from ftcli.data.images import CorruptImageError, read_image
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.thread_map import ThreadedMap
from ftcli.data.transforms import ImageTransform
from ftcli.errors import FtcliError


@dataclass(frozen=True)
class LoaderConfig:
    """The image files below `root`, and how they are read: by `workers` processes, or by this one if 0.

    A broken image is an error, or is left out. With `pin_memory` batches lie where a GPU can copy from by itself, if
    there is one. What `pixels` holds is not decoded anew; it must be of this root and the transform.
    """

    root: Path
    on_corrupt_image: Literal["error", "skip"]
    num_workers: int
    pin_memory: bool = False
    pixel_cache: PixelCache | None = None


@dataclass(frozen=True)
class BatchRequest:
    """What a batch is made from. It carries its samples, so that a worker never touches (and copies) the whole list,
    and of each the key of what is kept of it."""

    samples: tuple[Sample, ...]
    pixel_keys: tuple[Key | None, ...]
    rng_key: RngKey | None


_SEQUENTIAL = ThreadedMap(1)


class BatchBuilder(Dataset["Batch | FtcliError"]):
    """Makes batches, here or in a worker. A fault is handed back, not raised: a worker would wrap it in a traceback."""

    def __init__(self, config: LoaderConfig, transform: ImageTransform) -> None:
        self.config = config
        self.transform = transform

    def __getitem__(self, request: BatchRequest) -> Batch | FtcliError:
        return self.build(request, _SEQUENTIAL)

    def build(self, request: BatchRequest, thread_map: ThreadedMap) -> Batch | FtcliError:
        """The batch of a job, or why there is none, the fixed steps shared by threads; however many, it is the same.

        What chance decides is decided here, image by image: torch has one generator for all threads.
        """
        # What is kept is read in less time than a thread is told of it.
        use_threads = len(request.samples) > 1 and not any(request.pixel_keys)
        with closing(
            (thread_map if use_threads else _SEQUENTIAL).map(
                self._read_or_error, zip(request.samples, request.pixel_keys, strict=True)
            )
        ) as images:
            return self._assemble(request, images)

    def _assemble(self, request: BatchRequest, images: Iterable[Image.Image | FtcliError]) -> Batch | FtcliError:
        size = self.transform.size
        # As Pillow has it, channels last: that is how networks are fastest, and nothing need be turned round later.
        pixels = np.empty((len(request.samples), size, size, 3), dtype=np.uint8)
        samples: list[Sample] = []
        params_per_image: list[tuple[tuple[int, ...], ...]] = []
        skipped: list[SkippedImage] = []
        is_seeded = request.rng_key is not None and self.transform.is_random
        with torch.random.fork_rng(devices=[], enabled=is_seeded):
            for sample, image in zip(request.samples, images, strict=True):
                if isinstance(image, CorruptImageError) and self.config.on_corrupt_image == "skip":
                    skipped.append(SkippedImage(sample.path, image.reason, str(image)))
                    continue
                if isinstance(image, FtcliError):
                    return image
                if request.rng_key is not None and is_seeded:
                    torch.default_generator.manual_seed(runtime.derive_seed(*request.rng_key, sample.path))
                augmented, params = self.transform.apply_random(image)
                pixels[len(samples)] = np.asarray(augmented)
                samples.append(sample)
                params_per_image.append(params)
        return Batch(
            (torch.from_numpy(pixels[: len(samples)]).permute(0, 3, 1, 2),),
            torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            torch.tensor([sample.weight for sample in samples], dtype=torch.float64),
            tuple(sample.path for sample in samples),
            tuple(skipped),
            self._stack_params(params_per_image),
        )

    def _read_or_error(self, sample_and_key: tuple[Sample, Key | None]) -> Image.Image | FtcliError:
        """The image after the fixed steps, or why there is none."""
        try:
            return self._read(*sample_and_key)
        except FtcliError as error:
            return error

    def _read(self, sample: Sample, key: Key | None) -> Image.Image:
        if key is not None and self.config.pixel_cache is not None:
            image = self.config.pixel_cache.read(key)
            if image is not None:
                return image
        return self.transform.apply_deterministic(
            read_image(self.config.root / sample.path, self.transform.min_decode_size)
        )

    def _stack_params(self, params_per_image: list[tuple[tuple[int, ...], ...]]) -> tuple[BatchTransformParams, ...]:
        if not self.transform.is_deferred or not params_per_image:
            return ()
        return tuple(
            BatchTransformParams(transform.kind, torch.tensor(params, dtype=torch.int64))
            for transform, params in zip(
                self.transform.batch_transforms, zip(*params_per_image, strict=True), strict=True
            )
        )
