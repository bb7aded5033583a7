"""Batches of what was kept of images, in the stead of the images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ftcli.caching.store import Store
from ftcli.data.batches import Batch, Draw, LeftOut, count_batches, divide_order
from ftcli.data.sources import Sample
from ftcli.errors import RunError
from ftcli.features.prefix import Prefix

KEY_BYTES = 16


class ValueFeed:
    """Gives, for samples, the values that cross the cut of a network, as they stand in a store.

    `keys` holds, for each draw, the keys of all samples one after the other; where `fixed`, chance has no part in them
    and they stand for every draw. `left_out` are the broken images, by path: they are left out of every pass. Little
    is held beside the samples: some 30 bytes an image, and 16 for each draw.
    """

    def __init__(
        self,
        store: Store,
        prefix: Prefix,
        samples: tuple[Sample, ...],
        batch_size: int,
        keys: Mapping[Draw | None, bytes],
        left_out: Mapping[str, LeftOut],
        fixed: bool,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self._store = store
        self._prefix = prefix
        self._keys = dict(keys)
        self._left_out = dict(left_out)
        self._fixed = next(iter(self._keys.values())) if fixed else None
        self._labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        self._weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float64)

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

        Their values are float32 on the CPU, maps in the memory format that convolutions are fastest with; they may be
        written into. Raises ValueError for a draw that was not gathered, RunError where records have vanished.
        """
        keys = self._keys.get(draw) if self._fixed is None else self._fixed
        if keys is None:
            raise ValueError(f"the views of the draw {draw} were not gathered")
        for places in divide_order(
            range(len(self.samples)) if order is None else order, self.batch_size, start, merge_last
        ):
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
        index = torch.tensor(places, dtype=torch.int64)
        return Batch(
            self._prefix.split_rows(rows),
            self._labels[index],
            self._weights[index],
            tuple([self.samples[place].path for place in places]),
            left_out,
        )
