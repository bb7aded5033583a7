"""The frozen part of a network, made ready to compute once and for all what it gives for an image."""

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
"""How many images are computed at a time on a device at most. On the CPU larger batches gain nothing, and outgrow its
caches: two of these take as long as one of 32, and less than half as long as one of 64 where freed memory is not
kept."""

DEFAULT_MAX_BATCH_SIZE = 256
_REFERENCE_IMAGE_SIZE = (
    320  # pixels of a side up to which they are as many; of larger images fewer, of as many pixels in all
)
_MAX_PARALLEL_BATCHES = 16
"""How many batches are computed at once at most: their activations are in memory together."""


def choose_batch_size(device: torch.device, image_size: int) -> int:
    """How many images of size x size pixels are computed at a time on a device: a power of 2."""
    max_batch_size = MAX_BATCH_SIZES.get(device.type, DEFAULT_MAX_BATCH_SIZE)
    max_fitting = max(1, max_batch_size * _REFERENCE_IMAGE_SIZE**2 // max(image_size, _REFERENCE_IMAGE_SIZE) ** 2)
    return 1 << (max_fitting.bit_length() - 1)


class FrozenBackbone:
    """The prefix of a cut in eval mode, with its BatchNorms folded into the convolutions before them.

    Computes batches of one shape alone, so that on the CPU an image's values have the same bits in every company, and
    those of a graph with any number of threads. The network that was cut, which has to be on the device, keeps its
    tensors and modes. `batch` images are computed at a time, and what is kept of one has `row_bytes` bytes. `computed`
    counts those of `stream`.
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
        """The prefix with its norms folded; made when something has to be computed."""
        with preserve_training_mode(self._module):
            module = self._module.eval()
            return fuse_conv_bn(module) if isinstance(module, fx.GraphModule) else module

    @cached_property
    def _submodules(self) -> list[nn.Module]:
        return list(self._fused_module.modules())

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Eval mode in the context. To set it takes a small network a tenth of its time, so it is looked at first."""
        if not any(module.training for module in self._submodules):
            yield
            return
        with preserve_training_mode(self._fused_module):
            self._fused_module.eval()
            yield

    def compute(self, images: Tensor) -> NDArray[np.uint8]:
        """What crosses the cut for at most `batch` uint8 images (n, 3, size, size), as (n, row_bytes): the values one
        after the other in float32, maps with their channels last. Raises RunError where memory runs out."""
        with self._eval_mode(), self._thread_context():
            return self._compute(images)

    @property
    def num_parallel_batches(self) -> int:
        """How many batches `stream` computes at once, where there are as many."""
        return min(_MAX_PARALLEL_BATCHES, torch.get_num_threads()) if self._is_thread_safe else 1

    def compute_batches(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, NDArray[np.uint8]], None, None]:
        """The same for one batch after another, with the batch. To be closed; until then the network is in eval mode.

        On the CPU as many are computed beside one another as torch has threads, each by one. Threads that share a
        batch have to wait for each other at every layer, and where the share of one ends torch computes a few numbers
        of a sigmoid, say, in another way than those before, with other bits.
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
        """One thread for a batch, or all, where nothing can be computed beside it."""
        return single_threaded() if self._is_thread_safe else nullcontext()

    @property
    def _is_thread_safe(self) -> bool:
        """Whether several threads of the CPU may compute at once: a graph keeps nothing of what it computes."""
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
        """The crossing values that `compute` laid into rows, float32 with the batch first; maps are in the memory
        format that convolutions are fastest with. A single value shares the rows' memory."""
        values = torch.from_numpy(rows.view(np.float32))
        if len(self.shapes) == 1:
            return (_unflatten(values, self.shapes[0]),)
        parts = torch.split(values, [math.prod(shape) for shape in self.shapes], 1)
        return tuple(_unflatten(part.contiguous(), shape) for part, shape in zip(parts, self.shapes, strict=True))

    def measure_seconds_per_image(self) -> float:
        """The seconds that an image takes, measured on a full batch of the shape that is computed."""
        shape, generator = (self.batch_size, 3, self._image_size, self._image_size), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with self._eval_mode():  # with all threads, in the stead of the batches that are computed beside it
            self._compute(images[:1])  # the first time takes longer: memory and kernels are got ready
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
