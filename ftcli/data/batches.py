"""What is handed from those who read images to those who compute with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ftcli.data.changes import Changes
from ftcli.data.sources import Sample

Draw = tuple[int | str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A broken image that was left out: its path as its sample has it, what is wrong, and the whole sentence."""

    path: str
    why: str
    sentence: str


@dataclass
class Batch:
    """What a network is given for n images, their labels as int64 (n,), their weights in the training loss as float64
    (n,) and their paths relative to the root.

    `values` are the images alone, uint8 (n, 3, h, w), or what crosses the cut of a network, float32 with n first.
    `left_out` are the images that are broken; if all are, n is 0. `changes` are still to be made to the images, by
    `changes.apply_changes` where they are: there are none unless the transform left them.
    """

    values: tuple[Tensor, ...]
    labels: Tensor
    weights: Tensor
    paths: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    changes: tuple[Changes, ...] = ()

    @property
    def images(self) -> Tensor:
        """The images of a batch that holds them."""
        assert not self.changes  # whoever leaves them to a device makes them there
        (images,) = self.values
        return images

    @property
    def broken(self) -> tuple[str, ...]:
        """The sentences of the images that were left out."""
        return tuple(one.sentence for one in self.left_out)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself."""
        values = tuple(value.pin_memory() for value in self.values)
        changes = tuple(change.pin_memory() for change in self.changes)
        return replace(self, values=values, labels=self.labels.pin_memory(), changes=changes)


class Feed(Protocol):
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
        order: Sequence[int] | None = None,
        draw: Draw | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]: ...


def divide_order(
    order: Sequence[int], batch_size: int, start: int = 0, merge_last: bool = False
) -> Iterator[Sequence[int]]:
    """The places of each batch of an order, from batch `start` on. With `merge_last` a last batch of one image joins
    the batch before it, for BatchNorm in training can take no statistics from one."""
    last = count_batches(len(order), batch_size, merge_last) - 1
    for number in range(start, last + 1):
        end = len(order) if number == last else (number + 1) * batch_size
        yield order[number * batch_size : end]


def count_batches(images: int, batch_size: int, merge_last: bool = False) -> int:
    """The number of batches that so many images make."""
    batches = -(-images // batch_size)
    return batches - 1 if merge_last and images > batch_size > 1 and images % batch_size == 1 else batches
