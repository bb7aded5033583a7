"""What is handed from those who read images to those who compute with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ftcli.data.samples import Sample
from ftcli.data.transforms import BatchTransformParams

RngKey = tuple[int | str, ...]


@dataclass(frozen=True)
class SkippedImage:
    """A broken image that was left out: its path as its sample has it, what is wrong, and the whole sentence."""

    path: str
    reason: str
    message: str


@dataclass
class Batch:
    """What a network is given for n images, their labels as int64 (n,), their weights in the training loss as float64
    (n,) and their paths relative to the root.

    `values` are the images alone, uint8 (n, 3, h, w), or what crosses the cut of a network, float32 with n first.
    `left_out` are the images that are broken; if all are, n is 0. `changes` are still to be made to the images, by
    `changes.apply_batch_transforms` where they are: there are none unless the transform left them.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    weights: Tensor
    paths: tuple[str, ...]
    skipped: tuple[SkippedImage, ...] = ()
    transform_params: tuple[BatchTransformParams, ...] = ()

    @property
    def images(self) -> Tensor:
        """The images of a batch that holds them."""
        assert not self.transform_params  # whoever leaves them to a device makes them there
        (images,) = self.inputs
        return images

    @property
    def skip_messages(self) -> tuple[str, ...]:
        """The sentences of the images that were left out."""
        return tuple(image.message for image in self.skipped)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself."""
        inputs = tuple(value.pin_memory() for value in self.inputs)
        transform_params = tuple(params.pin_memory() for params in self.transform_params)
        return replace(self, inputs=inputs, labels=self.labels.pin_memory(), transform_params=transform_params)


class BatchLoader(Protocol):
    """Where batches come from: image files, or what is kept of them.

    `batches` gives those of the samples at the places `order` names (None: all, as they stand), from batch `start` on;
    `draw` tells which of the random looks at an image is meant (None: as in evaluation).
    """

    @property
    def samples(self) -> tuple[Sample, ...]: ...

    @property
    def batch_size(self) -> int: ...

    def count_batches(self, merge_last: bool = False) -> int: ...

    def batches(
        self,
        indices: Sequence[int] | None = None,
        rng_key: RngKey | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]: ...


def batch_indices(
    indices: Sequence[int], batch_size: int, start: int = 0, merge_last: bool = False
) -> Iterator[Sequence[int]]:
    """The places of each batch of an order, from batch `start` on. With `merge_last` a last batch of one image joins
    the batch before it, for BatchNorm in training can take no statistics from one."""
    last_batch = count_batches(len(indices), batch_size, merge_last) - 1
    for batch in range(start, last_batch + 1):
        end = len(indices) if batch == last_batch else (batch + 1) * batch_size
        yield indices[batch * batch_size : end]


def count_batches(num_images: int, batch_size: int, merge_last: bool = False) -> int:
    """The number of batches that so many images make."""
    num_batches = -(-num_images // batch_size)
    return (
        num_batches - 1 if merge_last and num_images > batch_size > 1 and num_images % batch_size == 1 else num_batches
    )
