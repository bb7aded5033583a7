"""Batches of images: the same ones whatever number of processes reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from types import TracebackType

import torch

from ftcli import runtime
from ftcli.data.batches import Batch, Draw, count_batches, divide_order
from ftcli.data.images import BrokenImage, read_shape
from ftcli.data.reading import BatchReader, ImageFiles, Job
from ftcli.data.sources import ImageSet, Sample
from ftcli.data.threads import Threads, choose_threads
from ftcli.data.transforms import ImageTransform, build_eval_transform
from ftcli.data.workers import WorkerPool
from ftcli.errors import DataError, FtcliError
from ftcli.recipe import schema
from ftcli.results import Preprocessing

LIGHT = 1_500_000
"""Pixels of an image up to which reading it is light work."""
_LOOKS = 8
Triple = tuple[float, float, float]


class Loader:
    """Reads samples in batches, with processes that stay between passes, or in this one if `files` asks for none: then
    with a thread for each core, which rests while whoever has a batch works on it.

    What becomes of an image depends on (draw, path) alone, so any number of workers gives the same bytes in the same
    order, and the random state of the calling process stays as it was. One pass at a time: a new one ends the one
    before it. Use it as a context manager, or `close` it. Workers take no notice of SIGINT and SIGTERM, which reach
    the whole group of processes; this one decides what they mean.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: ImageTransform, batch_size: int, files: ImageFiles
    ) -> None:
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self.num_workers = files.num_workers
        self._pixels = files.pixels
        self._pin_memory = files.pin_memory and torch.cuda.is_available()
        self._reader = BatchReader(files, transform)
        self._pool = WorkerPool(self._reader, files.num_workers, self._pin_memory) if files.num_workers else None
        self._threads = Threads(choose_threads())
        self._token = object()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, or the threads. The loader may be used again; it starts new ones."""
        self._token = object()
        self._threads.close()
        if self._pool:
            self._pool.close()

    def count_batches(self, merge_last: bool = False) -> int:
        """The number of batches that all samples make."""
        return count_batches(len(self.samples), self.batch_size, merge_last)

    def batches(
        self,
        order: Sequence[int] | None = None,
        draw: Draw | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of the samples at the places `order` names (None: all, as they stand), from batch `start` on.

        `draw` with an image's path seeds torch's CPU generator before the image's transform; None seeds nothing.
        With `merge_last` a last batch of one image joins the batch before it, for BatchNorm in training can take no
        statistics from one. Raises BrokenImage for the first broken image in order under "error", RunError when a
        worker was killed.
        """
        yield from self._make(
            self._plan_jobs(range(len(self.samples)) if order is None else order, draw, start, merge_last)
        )

    def stream(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        """Batches of samples that are taken from `samples` as they are needed, a few batches ahead, in their order.

        However many there are, no more than those are held. Raises what `batches` does.
        """
        coming = iter(samples)
        yield from self._make(
            self._plan_job(taken, None) for taken in iter(lambda: tuple(islice(coming, self.batch_size)), ())
        )

    def _make(self, jobs: Iterator[Job]) -> Iterator[Batch]:
        token = self._token = object()
        for made in self._pool.run(jobs) if self._pool else (self._reader.make(job, self._threads) for job in jobs):
            if isinstance(made, FtcliError):
                raise made
            yield made.pin_memory() if self._pin_memory and not self._pool else made
            if self._token is not token:
                raise RuntimeError("this pass is over: the loader was closed, or has begun another")

    def _plan_jobs(self, order: Sequence[int], draw: Draw | None, start: int, merge_last: bool) -> Iterator[Job]:
        for places in divide_order(order, self.batch_size, start, merge_last):
            yield self._plan_job(tuple(self.samples[place] for place in places), draw)

    def _plan_job(self, samples: tuple[Sample, ...], draw: Draw | None) -> Job:
        pixels = self._pixels
        keys = tuple(pixels.find_key(sample.path) if pixels else None for sample in samples)
        return Job(samples, keys, draw)


def choose_workers(wanted: int | None) -> int:
    """The number of worker processes: the wanted one, or as many as this process has cores, at most 8."""
    return min(8, runtime.count_cores()) if wanted is None else wanted


def share_cores(wanted: int | None, device: torch.device, images: ImageSet) -> int:
    """The number of worker processes beside a network that computes on `device`: the wanted one, or else as
    `choose_workers`, but none on the CPU where images have no more than LIGHT pixels on average, as some of them tell.

    Reading such an image takes about a millisecond. Processes that do it meanwhile compete with the network for the
    cores, whose threads then wait for one another: a training step takes a tenth longer.
    """
    if wanted is None and device.type == "cpu" and _weigh(images) <= LIGHT:
        return 0
    return choose_workers(wanted)


def _weigh(images: ImageSet) -> float:
    """The pixels of an image on average, from those of a few; 0 where none can be read."""
    samples = [sample for split in images.splits.values() for sample in split]
    pixels: list[int] = []
    for sample in samples[:: max(1, len(samples) // _LOOKS)]:
        with suppress(BrokenImage):
            width, height, _ = read_shape(images.root / sample.path)
            pixels.append(width * height)
    return sum(pixels) / max(1, len(pixels))


def order_epoch(seed: int, stage: str, epoch: int, count: int) -> list[int]:
    """The order of an epoch: a permutation of 0 to count - 1 that depends on the arguments alone."""
    generator = torch.Generator().manual_seed(runtime.derive_seed(seed, "order", stage, epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def measure_preprocessing(preprocessing: Preprocessing, images: ImageSet, data: schema.Data) -> Preprocessing:
    """The same preprocessing with mean and std of the training images, as `normalize: dataset` asks for. Raises as
    `measure_normalization` does."""
    files = ImageFiles(images.root, data.on_corrupt_image, choose_workers(data.num_workers))
    transform = build_eval_transform(preprocessing)
    with Loader(images.splits["train"], transform, data.batch_size, files) as loader:
        mean, std = measure_normalization(loader)
    return replace(preprocessing, mean=mean, std=std)


def measure_normalization(loader: Loader) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels of all images, for pixels from 0 to 1.

    Exact but for the last rounding, whatever the order and the size of batches. Raises DataError where no image could
    be read, or where all pixels of a channel are equal, for one cannot divide by a deviation of 0.
    """
    counts = torch.zeros((3, 256), dtype=torch.int64)
    for batch in loader.batches():
        for channel in range(3):
            counts[channel] += torch.bincount(batch.images[:, channel].flatten(), minlength=256)
    if not counts.any():
        raise DataError("data.normalize: no image could be read to measure mean and std; give numbers, or weights")
    shares = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    if not std.all():
        raise DataError("data.normalize: all pixels of a channel are equal, so its std is 0; give numbers, or weights")
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
