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
from ftcli.data.batches import Batch, Draw, LeftOut
from ftcli.data.changes import Changes
from ftcli.data.images import BrokenImage, read_image
from ftcli.data.pixels import PixelCache
from ftcli.data.sources import Sample
from ftcli.data.threads import Threads
from ftcli.data.transforms import ImageTransform
from ftcli.errors import FtcliError


@dataclass(frozen=True)
class ImageFiles:
    """The image files below `root`, and how they are read: by `workers` processes, or by this one if 0.

    A broken image is an error, or is left out. With `pin_memory` batches lie where a GPU can copy from by itself, if
    there is one. What `pixels` holds is not decoded anew; it must be of this root and the transform.
    """

    root: Path
    on_corrupt_image: Literal["error", "skip"]
    num_workers: int
    pin_memory: bool = False
    pixels: PixelCache | None = None


@dataclass(frozen=True)
class Job:
    """What a batch is made from. It carries its samples, so that a worker never touches (and copies) the whole list,
    and of each the key of what is kept of it."""

    samples: tuple[Sample, ...]
    keys: tuple[Key | None, ...]
    draw: Draw | None


_ALONE = Threads(1)


class BatchReader(Dataset["Batch | FtcliError"]):
    """Makes batches, here or in a worker. A fault is handed back, not raised: a worker would wrap it in a traceback."""

    def __init__(self, files: ImageFiles, transform: ImageTransform) -> None:
        self.files = files
        self.transform = transform

    def __getitem__(self, job: Job) -> Batch | FtcliError:
        return self.make(job, _ALONE)

    def make(self, job: Job, threads: Threads) -> Batch | FtcliError:
        """The batch of a job, or why there is none, the fixed steps shared by threads; however many, it is the same.

        What chance decides is decided here, image by image: torch has one generator for all threads.
        """
        # What is kept is read in less time than a thread is told of it.
        shared = len(job.samples) > 1 and not any(job.keys)
        with closing((threads if shared else _ALONE).map(self._try, zip(job.samples, job.keys, strict=True))) as images:
            return self._gather(job, images)

    def _gather(self, job: Job, images: Iterable[Image.Image | FtcliError]) -> Batch | FtcliError:
        size = self.transform.size
        # As Pillow has it, channels last: that is how networks are fastest, and nothing need be turned round later.
        pixels = np.empty((len(job.samples), size, size, 3), dtype=np.uint8)
        kept: list[Sample] = []
        left: list[tuple[tuple[int, ...], ...]] = []
        left_out: list[LeftOut] = []
        seeded = job.draw is not None and self.transform.is_random
        with torch.random.fork_rng(devices=[], enabled=seeded):
            for sample, image in zip(job.samples, images, strict=True):
                if isinstance(image, BrokenImage) and self.files.on_corrupt_image == "skip":
                    left_out.append(LeftOut(sample.path, image.why, str(image)))
                    continue
                if isinstance(image, FtcliError):
                    return image
                if job.draw is not None and seeded:
                    torch.default_generator.manual_seed(runtime.derive_seed(*job.draw, sample.path))
                varied, drawn = self.transform.vary(image)
                pixels[len(kept)] = np.asarray(varied)
                kept.append(sample)
                left.append(drawn)
        return Batch(
            (torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2),),
            torch.tensor([sample.label for sample in kept], dtype=torch.int64),
            torch.tensor([sample.weight for sample in kept], dtype=torch.float64),
            tuple(sample.path for sample in kept),
            tuple(left_out),
            self._list_changes(left),
        )

    def _try(self, wanted: tuple[Sample, Key | None]) -> Image.Image | FtcliError:
        """The image after the fixed steps, or why there is none."""
        try:
            return self._read(*wanted)
        except FtcliError as error:
            return error

    def _read(self, sample: Sample, key: Key | None) -> Image.Image:
        if key is not None and self.files.pixels is not None:
            image = self.files.pixels.read(key)
            if image is not None:
                return image
        return self.transform.fix(read_image(self.files.root / sample.path, self.transform.needed))

    def _list_changes(self, left: list[tuple[tuple[int, ...], ...]]) -> tuple[Changes, ...]:
        if not self.transform.is_deferred or not left:
            return ()
        return tuple(
            Changes(change.kind, torch.tensor(drawn, dtype=torch.int64))
            for change, drawn in zip(self.transform.changes, zip(*left, strict=True), strict=True)
        )
