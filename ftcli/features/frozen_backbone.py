"""The frozen backbone: the part of a model before its cut, optimized for computing features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ftcli.data.batches import Batch
from ftcli.data.thread_map import ThreadedMap
from ftcli.data.transforms import Normalizer
from ftcli.features.fusion import fuse_conv_bn
from ftcli.models.cut import ModelCut
from ftcli.models.fx_trace import preserve_training_mode
from ftcli.results import Preprocessing
from ftcli.runtime import autocast, raise_on_oom, single_threaded

MAX_BATCH_SIZES = {"cpu": 16}
"""The largest batch size by device type. Larger batches are not faster on a CPU, because they exceed its caches."""

DEFAULT_MAX_BATCH_SIZE = 256
_REFERENCE_IMAGE_SIZE = 320  # batches of larger images have as many pixels as the largest batch of this size
_MAX_PARALLEL_BATCHES = 16
"""The largest number of batches computed in parallel, whose activations are in memory at the same time."""


def choose_batch_size(device: torch.device, image_size: int) -> int:
    """Return the batch size of the frozen backbone, a power of 2."""
    max_batch_size = MAX_BATCH_SIZES.get(device.type, DEFAULT_MAX_BATCH_SIZE)
    max_fitting = max(1, max_batch_size * _REFERENCE_IMAGE_SIZE**2 // max(image_size, _REFERENCE_IMAGE_SIZE) ** 2)
    return 1 << (max_fitting.bit_length() - 1)


class FrozenBackbone:
    """The prefix of a cut model in eval mode, with BatchNorms folded into the preceding convolutions.

    All batches have the same shape, so that on a CPU the features of an image have the same bits in any batch and, for
    a traced model, with any number of threads. The cut model has to be on the device and is not changed. The features
    of an image have `row_bytes` bytes. `num_computed` counts the images of `compute_batches`.
    """

    def __init__(self, cut: ModelCut, preprocessing: Preprocessing, device: torch.device, precision: str) -> None:
        self.batch_size = choose_batch_size(device, preprocessing.image_size)
        self.shapes = tuple(boundary_tensor.shape for boundary_tensor in cut.boundary)
        self.row_bytes = 4 * sum(math.prod(shape) for shape in self.shapes)
        self.num_computed = 0
        self._image_size = preprocessing.image_size
        self._device = device
        self._precision = precision
        self._normalize = Normalizer(preprocessing, device)
        self._module = cut.prefix

    @cached_property
    def _fused_module(self) -> nn.Module:
        """The prefix with folded BatchNorms, created when features are first computed."""
        with preserve_training_mode(self._module):
            module = self._module.eval()
            return fuse_conv_bn(module) if isinstance(module, fx.GraphModule) else module

    @cached_property
    def _submodules(self) -> list[nn.Module]:
        return list(self._fused_module.modules())

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Set eval mode within the context, if it is not set: setting it takes 10% of the time of a small network."""
        if not any(module.training for module in self._submodules):
            yield
            return
        with preserve_training_mode(self._fused_module):
            self._fused_module.eval()
            yield

    def compute(self, images: Tensor) -> NDArray[np.uint8]:
        """Compute the features of at most `batch_size` uint8 images (n, 3, size, size) as rows (n, row_bytes).

        A row has the boundary tensors in float32, one after another, maps in channels_last. Raises RunError if memory
        runs out.
        """
        with self._eval_mode(), self._thread_context():
            return self._compute(images)

    @property
    def num_parallel_batches(self) -> int:
        """The number of batches that `compute_batches` computes in parallel."""
        return min(_MAX_PARALLEL_BATCHES, torch.get_num_threads()) if self._is_thread_safe else 1

    def compute_batches(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, NDArray[np.uint8]], None, None]:
        """Yield each batch with its rows. Close the generator: until then the model is in eval mode.

        On a CPU each torch thread computes its own batch. Threads that share a batch wait for each other at every
        layer, and torch computes the last elements of each share with other instructions, which changes bits.
        """
        num_threads = self.num_parallel_batches

        def compute_one(batch: Batch) -> tuple[Batch, NDArray[np.uint8]]:
            return batch, self._compute(batch.images)

        with self._eval_mode(), self._thread_context() as thread_init:
            threads = ThreadedMap(num_threads, 1, thread_init)
            try:
                for batch, rows in threads.map(compute_one, batches):
                    self.num_computed += len(rows)
                    yield batch, rows
            finally:
                threads.close()

    def _thread_context(self) -> AbstractContextManager[Callable[[], None] | None]:
        """Use one thread for a batch, or all if batches are not computed in parallel."""
        return single_threaded() if self._is_thread_safe else nullcontext()

    @property
    def _is_thread_safe(self) -> bool:
        """True on a CPU for a traced graph, which stores nothing during a forward pass."""
        return self._device.type == "cpu" and isinstance(self._module, fx.GraphModule)

    def _compute(self, images: Tensor) -> NDArray[np.uint8]:
        num_images = len(images)
        if not num_images:
            return np.empty((0, self.row_bytes), dtype=np.uint8)
        with raise_on_oom(), torch.inference_mode():
            if num_images < self.batch_size:
                images = torch.cat([images, images.new_zeros((self.batch_size - num_images, *images.shape[1:]))])
            inputs = self._normalize(images.to(self._device)).contiguous(memory_format=torch.channels_last)
            with autocast(self._device, self._precision):
                values = self._fused_module(inputs)
            rows = torch.cat([_flatten(value[:num_images]) for value in values], 1).cpu()
        return rows.numpy().view(np.uint8)

    def unpack_rows(self, rows: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """Return the boundary tensors (n, ...) of rows in float32, maps in channels_last.

        A single boundary tensor shares the memory of the rows.
        """
        values = torch.from_numpy(rows.view(np.float32))
        if len(self.shapes) == 1:
            return (_unflatten(values, self.shapes[0]),)
        parts = torch.split(values, [math.prod(shape) for shape in self.shapes], 1)
        return tuple(_unflatten(part.contiguous(), shape) for part, shape in zip(parts, self.shapes, strict=True))

    def measure_seconds_per_image(self) -> float:
        """Return the seconds that an image takes, measured on a full batch."""
        shape, generator = (self.batch_size, 3, self._image_size, self._image_size), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with self._eval_mode():  # with all threads, instead of several batches in parallel
            self._compute(images[:1])  # warm-up
            start = time.perf_counter()
            self._compute(images)
            return (time.perf_counter() - start) / self.batch_size


def _flatten(value: Tensor) -> Tensor:
    channels_last = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
    return channels_last.float().reshape(len(value), -1)


def _unflatten(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) != 3:
        return rows.view(len(rows), *shape)
    channels, height, width = shape
    return rows.view(len(rows), height, width, channels).permute(0, 3, 1, 2)
