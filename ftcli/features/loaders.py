"""Loaders of the features of a frozen backbone: cached, or computed in each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from ftcli.caching.store import KEY_BYTES, Store
from ftcli.data.batches import Batch, SkippedImage, batch_indices, count_batches
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform
from ftcli.errors import RunError
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.runtime import RngKey

Clock = Callable[[], AbstractContextManager[None]]
"""A function that returns a context manager which measures its duration."""


class _FeatureLoaderBase:
    """Samples, and the conversion of their features to batches."""

    def __init__(self, backbone: FrozenBackbone, samples: Sequence[Sample], batch_size: int) -> None:
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self._backbone = backbone
        self._labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        self._weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float64)

    def count_batches(self, merge_last: bool = False) -> int:
        """Return the number of batches of all samples."""
        return count_batches(len(self.samples), self.batch_size, merge_last)

    def _plan_batches(
        self, indices: Sequence[int] | None, start: int, merge_last: bool
    ) -> tuple[Sequence[int], Iterator[Sequence[int]]]:
        """Return the indices of all batches, and those of each batch from batch `start` on."""
        all_indices = range(len(self.samples)) if indices is None else indices
        return all_indices, batch_indices(all_indices, self.batch_size, start, merge_last)

    def _make_batch(self, indices: Sequence[int], rows: NDArray[np.uint8], skipped: tuple[SkippedImage, ...]) -> Batch:
        """Return the batch of the samples at the indices, whose features are the rows."""
        index_tensor = torch.tensor(indices, dtype=torch.int64)
        return Batch(
            self._backbone.unpack_rows(rows),
            self._labels[index_tensor],
            self._weights[index_tensor],
            tuple([self.samples[index].path for index in indices]),
            skipped,
        )


class CachedFeatureLoader(_FeatureLoaderBase):
    """A loader of features from a store.

    `record_keys` has, for each RngKey, the keys of all samples, concatenated; if `is_deterministic`, the only ones are
    used for every RngKey. `skipped` has the corrupt images by path. The loader needs about 30 bytes of memory for each
    image and 16 for each view.
    """

    def __init__(
        self,
        store: Store,
        backbone: FrozenBackbone,
        samples: Sequence[Sample],
        batch_size: int,
        record_keys: Mapping[RngKey | None, bytes],
        skipped: Mapping[str, SkippedImage],
        is_deterministic: bool,
    ) -> None:
        super().__init__(backbone, samples, batch_size)
        self._store = store
        self._record_keys = dict(record_keys)
        self._skipped = dict(skipped)
        self._shared_keys = next(iter(self._record_keys.values())) if is_deterministic else None

    def batches(
        self,
        indices: Sequence[int] | None = None,
        rng_key: RngKey | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of the samples at `indices`, by default all in order, from batch `start` on.

        Their features are writable float32 tensors on the CPU, maps in channels_last. Raises ValueError for an RngKey
        whose features were not requested, RunError if records were evicted.
        """
        record_keys = self._record_keys.get(rng_key) if self._shared_keys is None else self._shared_keys
        if record_keys is None:
            raise ValueError(f"the features of the RngKey {rng_key} were not requested")
        for sample_indices in self._plan_batches(indices, start, merge_last)[1]:
            yield self._load_batch(sample_indices, record_keys)

    def _load_batch(self, indices: Sequence[int], record_keys: bytes) -> Batch:
        skipped: tuple[SkippedImage, ...] = ()
        if self._skipped:
            paths = (self.samples[index].path for index in indices)
            skipped = tuple(self._skipped[path] for path in paths if path in self._skipped)
            indices = [index for index in indices if self.samples[index].path not in self._skipped]
        rows = np.empty((len(indices), self._backbone.row_bytes), dtype=np.uint8)
        batch_keys = [record_keys[KEY_BYTES * index : KEY_BYTES * (index + 1)] for index in indices]
        try:
            self._store.gather(batch_keys, rows)
        except KeyError as error:
            raise RunError(
                f"{self._store.folder}: cached features were removed or are corrupt; run again, or set cache: off"
            ) from error
        return self._make_batch(indices, rows, skipped)


class FeatureLoader(_FeatureLoaderBase):
    """A loader of features that are computed in each pass.

    On a CPU the features have the bits of a CachedFeatureLoader. `clock` measures computing, not the loading of images.
    Use the loader as a context manager, which stops its workers.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        samples: Sequence[Sample],
        transform: ImageTransform,
        batch_size: int,
        loader_config: LoaderConfig,
        clock: Clock,
    ) -> None:
        super().__init__(backbone, samples, batch_size)
        self._image_loader = ImageLoader(samples, transform, backbone.batch_size, loader_config)
        self._clock = clock

    def __enter__(self) -> FeatureLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._image_loader.close()

    def batches(
        self,
        indices: Sequence[int] | None = None,
        rng_key: RngKey | None = None,
        start: int = 0,
        merge_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of the samples at `indices`, by default all in order, from batch `start` on.

        A new pass ends the previous one. Raises as ImageLoader does.
        """
        all_indices, index_batches = self._plan_batches(indices, start, merge_last)
        results = self._compute(all_indices[start * self.batch_size :], rng_key)
        for sample_indices in index_batches:
            rows, computed_indices, skipped = list[NDArray[np.uint8]](), list[int](), list[SkippedImage]()
            for index, result in zip(sample_indices, islice(results, len(sample_indices)), strict=True):
                if isinstance(result, SkippedImage):
                    skipped.append(result)
                else:
                    rows.append(result)
                    computed_indices.append(index)
            stacked = np.stack(rows) if rows else np.empty((0, self._backbone.row_bytes), dtype=np.uint8)
            yield self._make_batch(computed_indices, stacked, tuple(skipped))

    def _compute(self, indices: Sequence[int], rng_key: RngKey | None) -> Iterator[NDArray[np.uint8] | SkippedImage]:
        """Yield the features of each sample, or its corrupt image.

        The backbone computes batches of its own size, several in parallel, whatever the batch size of the loader.
        """
        index_batches = batch_indices(indices, self._backbone.batch_size)
        image_batches = self._image_loader.batches(indices, rng_key)
        while batch_group := list(islice(image_batches, self._backbone.num_parallel_batches)):
            with self._clock():
                computed = list(self._backbone.compute_batches(batch_group))
            for sample_indices, (batch, rows) in zip(islice(index_batches, len(batch_group)), computed, strict=True):
                skipped_by_path, row_iter = (
                    {skipped_image.path: skipped_image for skipped_image in batch.skipped},
                    iter(rows),
                )
                for index in sample_indices:
                    path = self.samples[index].path
                    yield skipped_by_path[path] if path in skipped_by_path else next(row_iter)
