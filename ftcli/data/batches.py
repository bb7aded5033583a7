"""Batches, the protocol of their loaders, and the division of samples into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ftcli.data.samples import Sample
from ftcli.data.transforms import BatchTransformParams
from ftcli.runtime import RngKey


@dataclass(frozen=True)
class SkippedImage:
    """A corrupt image that was skipped: the path of its sample, the reason, and the full message."""

    path: str
    reason: str
    message: str


@dataclass
class Batch:
    """The inputs of a network for n images, with their labels, int64 (n,), their weights in the training loss, float64
    (n,), and their paths relative to the root.

    `inputs` are the images alone, uint8 (n, 3, h, w), or the boundary tensors of a cut model, float32 (n, ...). `n` is
    0 if all images were skipped. `transform_params` are those of batch transforms that the device has yet to apply.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    weights: Tensor
    paths: tuple[str, ...]
    skipped: tuple[SkippedImage, ...] = ()
    transform_params: tuple[BatchTransformParams, ...] = ()

    @property
    def images(self) -> Tensor:
        """The images, of a batch without batch transforms yet to apply."""
        assert not self.transform_params
        (images,) = self.inputs
        return images

    @property
    def skip_messages(self) -> tuple[str, ...]:
        """The messages of the skipped images."""
        return tuple(image.message for image in self.skipped)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory."""
        inputs = tuple(value.pin_memory() for value in self.inputs)
        transform_params = tuple(params.pin_memory() for params in self.transform_params)
        return replace(self, inputs=inputs, labels=self.labels.pin_memory(), transform_params=transform_params)


class BatchLoader(Protocol):
    """A loader of batches of images or of features.

    `batches` yields the samples at `indices`, by default all in order, from batch `start` on; `rng_key` selects the
    augmented view.
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
    """Yield the indices of each batch, from batch `start` on.

    With `merge_last` a last batch of one image joins the previous batch, because BatchNorm cannot train on one image.
    """
    last_batch = count_batches(len(indices), batch_size, merge_last) - 1
    for batch in range(start, last_batch + 1):
        end = len(indices) if batch == last_batch else (batch + 1) * batch_size
        yield indices[batch * batch_size : end]


def count_batches(num_images: int, batch_size: int, merge_last: bool = False) -> int:
    """Return the number of batches of `num_images`."""
    num_batches = -(-num_images // batch_size)
    return (
        num_batches - 1 if merge_last and num_images > batch_size > 1 and num_images % batch_size == 1 else num_batches
    )
