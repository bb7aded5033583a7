"""Batches of images: the same ones whatever number of processes reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ftcli import runtime
from ftcli.data.images import BrokenImage, read_rgb
from ftcli.data.sources import ImageSet, Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform
from ftcli.data.workers import WorkerPool
from ftcli.errors import DataError, FtcliError
from ftcli.recipe import schema
from ftcli.results import Preprocessing

Draw = tuple[int | str, ...]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class LeftOut:
    """A broken image that was left out: its path as its sample has it, what is wrong, and the whole sentence."""

    path: str
    why: str
    sentence: str


@dataclass
class Batch:
    """Images as uint8 (n, 3, h, w), their labels as int64 (n,), their weights in the training loss as float64 (n,) and
    their paths relative to the root.

    `left_out` are the images that are broken; if all are, n is 0.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    paths: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def broken(self) -> tuple[str, ...]:
        """The sentences of the images that were left out."""
        return tuple(one.sentence for one in self.left_out)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.weights, self.paths, self.left_out)


@dataclass(frozen=True)
class _Job:
    """What a batch is made from. It carries its samples, so that a worker never touches (and copies) the whole list."""

    samples: tuple[Sample, ...]
    draw: Draw | None


class _Reader(Dataset["Batch | FtcliError"]):
    """Makes batches, here or in a worker. A fault is handed back, not raised: a worker would wrap it in a traceback."""

    def __init__(self, root: Path, transform: ImageTransform, skip: bool) -> None:
        self.root = root
        self.transform = transform
        self.skip = skip

    def __getitem__(self, job: _Job) -> Batch | FtcliError:
        images: list[Tensor] = []
        kept: list[Sample] = []
        left_out: list[LeftOut] = []
        with torch.random.fork_rng(devices=[], enabled=job.draw is not None):
            for sample in job.samples:
                try:
                    image = read_rgb(self.root / sample.path)
                except BrokenImage as error:
                    if not self.skip:
                        return error
                    left_out.append(LeftOut(sample.path, error.why, str(error)))
                    continue
                except FtcliError as error:
                    return error
                if job.draw is not None:
                    torch.default_generator.manual_seed(runtime.derive_seed(*job.draw, sample.path))
                images.append(self.transform(image))
                kept.append(sample)
        return Batch(
            torch.stack(images) if images else torch.empty((0, 3, 0, 0), dtype=torch.uint8),
            torch.tensor([sample.label for sample in kept], dtype=torch.int64),
            torch.tensor([sample.weight for sample in kept], dtype=torch.float64),
            tuple(sample.path for sample in kept),
            tuple(left_out),
        )


class Loader:
    """Reads samples in batches, with `workers` processes that stay between passes, or in this one if 0.

    What becomes of an image depends on (draw, path) alone, so any number of workers gives the same bytes in the same
    order, and the random state of the calling process stays as it was. One pass at a time: a new one ends the one
    before it. Use it as a context manager, or `close` it. Workers take no notice of SIGINT and SIGTERM, which reach
    the whole group of processes; this one decides what they mean.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        root: Path,
        transform: ImageTransform,
        batch_size: int,
        workers: int,
        on_bad_image: Literal["error", "skip"],
        pin_memory: bool = False,
    ) -> None:
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self.workers = workers
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._reader = _Reader(root, transform, on_bad_image == "skip")
        self._pool = WorkerPool(self._reader, workers, self._pin_memory) if workers else None
        self._token = object()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. The loader may be used again; it starts new ones."""
        self._token = object()
        if self._pool:
            self._pool.close()

    def count_batches(self, count: int | None = None, merge_last: bool = False) -> int:
        """The number of batches that `count` images make; None stands for all samples."""
        images = len(self.samples) if count is None else count
        batches = -(-images // self.batch_size)
        return batches - 1 if merge_last and self._is_last_single(images) else batches

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
        yield from self._make(_Job(taken, None) for taken in iter(lambda: tuple(islice(coming, self.batch_size)), ()))

    def _make(self, jobs: Iterator[_Job]) -> Iterator[Batch]:
        token = self._token = object()
        for made in self._pool.run(jobs) if self._pool else map(self._reader.__getitem__, jobs):
            if isinstance(made, FtcliError):
                raise made
            yield made.pin_memory() if self._pin_memory and not self._pool else made
            if self._token is not token:
                raise RuntimeError("this pass is over: the loader was closed, or has begun another")

    def _plan_jobs(self, order: Sequence[int], draw: Draw | None, start: int, merge_last: bool) -> Iterator[_Job]:
        last = self.count_batches(len(order), merge_last) - 1
        for number in range(start, last + 1):
            end = len(order) if number == last else (number + 1) * self.batch_size
            yield _Job(tuple(self.samples[place] for place in order[number * self.batch_size : end]), draw)

    def _is_last_single(self, images: int) -> bool:
        return images > self.batch_size > 1 and images % self.batch_size == 1


def choose_workers(wanted: int | None) -> int:
    """The number of worker processes: the wanted one, or as many as this process has cores, at most 8."""
    return min(8, runtime.count_cores()) if wanted is None else wanted


def order_epoch(seed: int, stage: str, epoch: int, count: int) -> list[int]:
    """The order of an epoch: a permutation of 0 to count - 1 that depends on the arguments alone."""
    generator = torch.Generator().manual_seed(runtime.derive_seed(seed, "order", stage, epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def measure_preprocessing(preprocessing: Preprocessing, images: ImageSet, data: schema.Data) -> Preprocessing:
    """The same preprocessing with mean and std of the training images, as `normalize: data` asks for. Raises as
    `measure_normalization` does."""
    transform, workers = build_eval_transform(preprocessing), choose_workers(data.workers)
    with Loader(images.splits["train"], images.root, transform, data.batch_size, workers, data.on_bad_image) as loader:
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
