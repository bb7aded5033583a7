"""Loaders of image batches, with the same batches for any number of worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ftcli import runtime
from ftcli.caching.store import Key
from ftcli.data.batches import Batch, SkippedImage, batch_indices, count_batches
from ftcli.data.dataset import ImageDataset
from ftcli.data.images import CorruptImageError, read_image, read_shape
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.samples import Sample
from ftcli.data.thread_map import ThreadedMap, default_num_threads
from ftcli.data.transforms import BatchTransformParams, ImageTransform, build_eval_transform
from ftcli.data.workers import WorkerPool
from ftcli.errors import DataError, FtcliError
from ftcli.recipe import schema
from ftcli.results import Preprocessing
from ftcli.runtime import RngKey

SMALL_IMAGE_PIXELS = 1_500_000
"""Pixels of an image up to which loading it is cheap."""
_NUM_SIZE_SAMPLES = 8
ChannelValues = tuple[float, float, float]


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of every loader of images.

    `root` is the folder that sample paths are relative to. With `num_workers` 0 this process loads the images itself.
    `pin_memory` has no effect without a GPU. `pixel_cache` holds decoded images of the same root and transform. With
    `rehash` caches read every file again to identify it by its bytes, not by its size and dates.
    """

    root: Path
    on_corrupt_image: Literal["error", "skip"]
    num_workers: int
    pin_memory: bool = False
    pixel_cache: PixelCache | None = None
    rehash: bool = False


@dataclass(frozen=True)
class BatchRequest:
    """The samples of a batch, their keys in the pixel cache, and the key of their random augmentations.

    It contains its samples, so that a worker does not touch, and thereby copy, the list of all samples.
    """

    samples: tuple[Sample, ...]
    pixel_keys: tuple[Key | None, ...]
    rng_key: RngKey | None


_SEQUENTIAL = ThreadedMap(1)


class BatchBuilder(Dataset["Batch | FtcliError"]):
    """The dataset of a DataLoader: it builds a batch from a request, in a worker or in this process.

    Errors are returned, not raised, because a worker would wrap them in a traceback.
    """

    def __init__(self, config: LoaderConfig, transform: ImageTransform) -> None:
        self.config = config
        self.transform = transform

    def __getitem__(self, request: BatchRequest) -> Batch | FtcliError:
        return self.build(request, _SEQUENTIAL)

    def build(self, request: BatchRequest, thread_map: ThreadedMap) -> Batch | FtcliError:
        """Return the batch of a request, or an error. Threads share the deterministic steps and change no result.

        Random augmentations are applied in this thread, image by image: torch has one generator for all threads.
        """
        # Reading a cached image takes less time than handing it to a thread.
        use_threads = len(request.samples) > 1 and not any(request.pixel_keys)
        with closing(
            (thread_map if use_threads else _SEQUENTIAL).map(
                self._read_or_error, zip(request.samples, request.pixel_keys, strict=True)
            )
        ) as images:
            return self._assemble(request, images)

    def _assemble(self, request: BatchRequest, images: Iterable[Image.Image | FtcliError]) -> Batch | FtcliError:
        size = self.transform.size
        # Channels last, as in Pillow: convolutions are fastest with it, and no copy is needed.
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
        """Return the image after the deterministic steps, or an error."""
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


class ImageLoader:
    """A loader of image batches, in worker processes that persist between passes, or in threads of this process.

    An image depends only on its key and path, so any number of workers gives the same bytes in the same order. The
    random state of the calling process does not change. A new pass ends the previous one. Use the loader as a context
    manager, or close it. Workers ignore SIGINT and SIGTERM, which are sent to the whole process group.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: ImageTransform, batch_size: int, config: LoaderConfig
    ) -> None:
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self.num_workers = config.num_workers
        self._pixel_cache = config.pixel_cache
        self._pin_memory = config.pin_memory and torch.cuda.is_available()
        self._builder = BatchBuilder(config, transform)
        self._worker_pool = (
            WorkerPool(self._builder, config.num_workers, self._pin_memory) if config.num_workers else None
        )
        self._thread_map = ThreadedMap(default_num_threads())
        self._pass_token = object()

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and threads. Another pass starts new ones."""
        self._pass_token = object()
        self._thread_map.close()
        if self._worker_pool:
            self._worker_pool.close()

    def count_batches(self, merge_last: bool = False) -> int:
        """Return the number of batches of all samples."""
        return count_batches(len(self.samples), self.batch_size, merge_last)

    def batches(
        self,
        indices: Sequence[int] | None = None,
        rng_key: RngKey | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of the samples at `indices`, by default all in order, from batch `start` on.

        `rng_key` and the path of an image seed torch's CPU generator for its random transform. With `merge_last` a
        last batch of one image joins the previous batch, because BatchNorm cannot train on one image. Raises
        CorruptImageError unless corrupt images are skipped, and RunError if a worker was killed.
        """
        yield from self._build_batches(
            self._make_requests(range(len(self.samples)) if indices is None else indices, rng_key, start, merge_last)
        )

    def stream(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        """Yield batches of an iterable of samples, which is consumed only a few batches ahead.

        Raises as `batches` does.
        """
        remaining = iter(samples)
        yield from self._build_batches(
            self._make_request(chunk, None) for chunk in iter(lambda: tuple(islice(remaining, self.batch_size)), ())
        )

    def _build_batches(self, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
        token = self._pass_token = object()
        for result in (
            self._worker_pool.run(requests)
            if self._worker_pool
            else (self._builder.build(request, self._thread_map) for request in requests)
        ):
            if isinstance(result, FtcliError):
                raise result
            yield result.pin_memory() if self._pin_memory and not self._worker_pool else result
            if self._pass_token is not token:
                raise RuntimeError("this pass has ended: the loader was closed or another pass began")

    def _make_requests(
        self, indices: Sequence[int], rng_key: RngKey | None, start: int, merge_last: bool
    ) -> Iterator[BatchRequest]:
        for sample_indices in batch_indices(indices, self.batch_size, start, merge_last):
            yield self._make_request(tuple(self.samples[index] for index in sample_indices), rng_key)

    def _make_request(self, samples: tuple[Sample, ...], rng_key: RngKey | None) -> BatchRequest:
        pixel_cache = self._pixel_cache
        keys = tuple(pixel_cache.find_key(sample.path) if pixel_cache else None for sample in samples)
        return BatchRequest(samples, keys, rng_key)


def resolve_num_workers(requested: int | None) -> int:
    """Return the requested number of workers, by default the number of available cores, at most 8."""
    return min(8, runtime.count_cores()) if requested is None else requested


def choose_num_workers(requested: int | None, device: torch.device, dataset: ImageDataset) -> int:
    """Return the requested number of workers, by default one per core, at most 8, but 0 for small images on a CPU.

    Loading an image of at most SMALL_IMAGE_PIXELS takes about a millisecond. Workers would compete with the network
    for the cores, and a training step would take 10% longer.
    """
    if requested is None and device.type == "cpu" and _mean_pixels(dataset) <= SMALL_IMAGE_PIXELS:
        return 0
    return resolve_num_workers(requested)


def _mean_pixels(dataset: ImageDataset) -> float:
    """Return the mean number of pixels of a few images; 0 if none can be read."""
    samples = [sample for split in dataset.splits.values() for sample in split]
    pixel_counts: list[int] = []
    for sample in samples[:: max(1, len(samples) // _NUM_SIZE_SAMPLES)]:
        with suppress(CorruptImageError):
            width, height, _ = read_shape(dataset.root / sample.path)
            pixel_counts.append(width * height)
    return sum(pixel_counts) / max(1, len(pixel_counts))


def epoch_permutation(seed: int, stage: str, epoch: int, num_samples: int) -> list[int]:
    """Return the order of the samples in an epoch, which depends only on the arguments."""
    generator = torch.Generator().manual_seed(runtime.derive_seed(seed, "order", stage, epoch))
    permutation: list[int] = torch.randperm(num_samples, generator=generator).tolist()
    return permutation


def measure_preprocessing(preprocessing: Preprocessing, dataset: ImageDataset, data: schema.Data) -> Preprocessing:
    """Return the preprocessing with the mean and std of the training images, for `normalize: dataset`.

    Raises as `measure_normalization` does.
    """
    config = LoaderConfig(dataset.root, data.on_corrupt_image, resolve_num_workers(data.num_workers))
    transform = build_eval_transform(preprocessing)
    with ImageLoader(dataset.splits["train"], transform, data.batch_size, config) as loader:
        mean, std = measure_normalization(loader)
    return replace(preprocessing, mean=mean, std=std)


def measure_normalization(loader: ImageLoader) -> tuple[ChannelValues, ChannelValues]:
    """Return the mean and standard deviation of each channel over all pixels of all images, for pixels from 0 to 1.

    The result does not depend on the order and size of batches. Raises DataError if no image can be read, or if all
    pixels of a channel are equal.
    """
    counts = torch.zeros((3, 256), dtype=torch.int64)
    for batch in loader.batches():
        for channel in range(3):
            counts[channel] += torch.bincount(batch.images[:, channel].flatten(), minlength=256)
    if not counts.any():
        raise DataError(
            "data.normalize: no image could be read to measure mean and std; give mean and std, or use pretrained"
        )
    fractions = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = fractions @ levels
    std = (fractions * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    if not std.all():
        raise DataError(
            "data.normalize: all pixels of a channel are equal, so its std is 0; give mean and std, or use pretrained"
        )
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
