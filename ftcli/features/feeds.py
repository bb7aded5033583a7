"""Batches of what the frozen part of a network gives for images, in the stead of the images themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from ftcli.caching.store import Store
from ftcli.data.batches import Batch, Draw, LeftOut, count_batches, divide_order
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import ImageTransform
from ftcli.errors import RunError
from ftcli.features.prefix import Prefix

KEY_BYTES = 16

Clock = Callable[[], AbstractContextManager[None]]
"""What makes a context that measures how long it takes."""


class _Crossings:
    """Samples, and how what crosses a cut for some of them becomes a batch."""

    def __init__(self, prefix: Prefix, samples: Sequence[Sample], batch_size: int) -> None:
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self._prefix = prefix
        self._labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        self._weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float64)

    def count_batches(self, merge_last: bool = False) -> int:
        """The number of batches that all samples make."""
        return count_batches(len(self.samples), self.batch_size, merge_last)

    def _divide(
        self, order: Sequence[int] | None, start: int, merge_last: bool
    ) -> tuple[Sequence[int], Iterator[Sequence[int]]]:
        """The order, and the places of its batches from batch `start` on."""
        whole = range(len(self.samples)) if order is None else order
        return whole, divide_order(whole, self.batch_size, start, merge_last)

    def _put(self, places: Sequence[int], rows: NDArray[np.uint8], left_out: tuple[LeftOut, ...]) -> Batch:
        """The batch of the samples at some places, whose rows these are."""
        index = torch.tensor(places, dtype=torch.int64)
        return Batch(
            self._prefix.split_rows(rows),
            self._labels[index],
            self._weights[index],
            tuple([self.samples[place].path for place in places]),
            left_out,
        )


class ValueFeed(_Crossings):
    """Gives, for samples, the values that cross the cut of a network, as they stand in a store.

    `keys` holds, for each draw, the keys of all samples one after the other; where `fixed`, chance has no part in them
    and they stand for every draw. `left_out` are the broken images, by path: they are left out of every pass. Little
    is held beside the samples: some 30 bytes an image, and 16 for each draw.
    """

    def __init__(
        self,
        store: Store,
        prefix: Prefix,
        samples: Sequence[Sample],
        batch_size: int,
        keys: Mapping[Draw | None, bytes],
        left_out: Mapping[str, LeftOut],
        fixed: bool,
    ) -> None:
        super().__init__(prefix, samples, batch_size)
        self._store = store
        self._keys = dict(keys)
        self._left_out = dict(left_out)
        self._fixed = next(iter(self._keys.values())) if fixed else None

    def batches(
        self,
        order: Sequence[int] | None = None,
        draw: Draw | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of the samples at the places `order` names (None: all, as they stand), from batch `start` on.

        Their values are float32 on the CPU, maps in the memory format that convolutions are fastest with; they may be
        written into. Raises ValueError for a draw that was not gathered, RunError where records have vanished.
        """
        keys = self._keys.get(draw) if self._fixed is None else self._fixed
        if keys is None:
            raise ValueError(f"the views of the draw {draw} were not gathered")
        for places in self._divide(order, start, merge_last)[1]:
            yield self._make(places, keys)

    def _make(self, places: Sequence[int], keys: bytes) -> Batch:
        left_out: tuple[LeftOut, ...] = ()
        if self._left_out:
            paths = (self.samples[place].path for place in places)
            left_out = tuple(self._left_out[path] for path in paths if path in self._left_out)
            places = [place for place in places if self.samples[place].path not in self._left_out]
        rows = np.empty((len(places), self._prefix.row_bytes), dtype=np.uint8)
        wanted = [keys[KEY_BYTES * place : KEY_BYTES * (place + 1)] for place in places]
        try:
            self._store.gather(wanted, rows)
        except KeyError as error:
            raise RunError(
                f"{self._store.folder}: what was kept there has vanished or is damaged; run again, or set cache: off"
            ) from error
        return self._put(places, rows, left_out)


class ComputedFeed(_Crossings):
    """Gives, for samples, the values that cross the cut of a network, computed anew in each pass and kept nowhere.

    On the CPU they have the bits that a ValueFeed gives for the same looks, so whether there is room to keep them
    changes no result. `clock` measures the computing, which is part of what a pass waits for; reading the images is
    not. Use it as a context manager, for the processes that read.
    """

    def __init__(
        self,
        prefix: Prefix,
        samples: Sequence[Sample],
        transform: ImageTransform,
        batch_size: int,
        files: ImageFiles,
        clock: Clock,
    ) -> None:
        super().__init__(prefix, samples, batch_size)
        self._loader = Loader(samples, transform, prefix.batch, files)
        self._clock = clock

    def __enter__(self) -> ComputedFeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()

    def batches(
        self,
        order: Sequence[int] | None = None,
        draw: Draw | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of the samples at the places `order` names (None: all, as they stand), from batch `start` on.

        Their values are those of ValueFeed. One pass at a time. Raises what a Loader raises.
        """
        whole, divided = self._divide(order, start, merge_last)
        answers = self._compute(whole[start * self.batch_size :], draw)
        for places in divided:
            rows, kept, left_out = list[NDArray[np.uint8]](), list[int](), list[LeftOut]()
            for place, answer in zip(places, islice(answers, len(places)), strict=True):
                if isinstance(answer, LeftOut):
                    left_out.append(answer)
                else:
                    rows.append(answer)
                    kept.append(place)
            stacked = np.stack(rows) if rows else np.empty((0, self._prefix.row_bytes), dtype=np.uint8)
            yield self._put(kept, stacked, tuple(left_out))

    def _compute(self, order: Sequence[int], draw: Draw | None) -> Iterator[NDArray[np.uint8] | LeftOut]:
        """For each place of an order the row of its sample, or why there is none. Batches of the prefix's own size are
        computed whatever the size of those that are asked for, as many at once as the prefix computes."""
        shares = divide_order(order, self._prefix.batch)
        coming = self._loader.batches(order, draw)
        while taken := list(islice(coming, self._prefix.beside)):
            with self._clock():
                computed = list(self._prefix.stream(taken))
            for places, (batch, rows) in zip(islice(shares, len(taken)), computed, strict=True):
                broken, given = {one.path: one for one in batch.left_out}, iter(rows)
                for place in places:
                    path = self.samples[place].path
                    yield broken[path] if path in broken else next(given)
