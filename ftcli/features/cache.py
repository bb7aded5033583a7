"""The feature cache: outputs of a frozen backbone for images, stored under everything that determines their bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from ftcli.caching.file_hashes import hash_files
from ftcli.caching.store import KEY_BYTES, Store, StoreWriter, make_key
from ftcli.data.batches import SkippedImage, batch_indices
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform
from ftcli.errors import DataError, RunError
from ftcli.features.fingerprint import NO_DIGESTS, TensorDigests, fingerprint_backbone
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.loaders import CachedFeatureLoader
from ftcli.models.cut import ModelCut
from ftcli.results import Preprocessing, ProgressCounter, ProgressTask, format_count
from ftcli.runtime import RngKey, resolve_precision

_RECORD_OVERHEAD = 600  # bytes of a record in addition to its features
_NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True)
class FeatureRequest:
    """The samples of a split and the views of them whose features are needed.

    There is one key for each augmented view; a deterministic transform has one view, whose key is ignored.
    """

    samples: Sequence[Sample]
    transform: ImageTransform
    rng_keys: Sequence[RngKey | None]
    task: ProgressTask


class CacheFullError(RunError):
    """The features do not fit in the cache. Nothing was computed."""


class FeatureCache:
    """The stored features of one frozen backbone, shared by all processes.

    The store is identified by the backbone's tensors, graph and cut, the device type, the precision and the versions of
    the libraries; a record by the bytes of its image, the transform and, for an augmented view, its key and path.
    """

    def __init__(
        self,
        cut: ModelCut,
        preprocessing: Preprocessing,
        device: torch.device,
        precision: str,
        known_digests: TensorDigests = NO_DIGESTS,
    ) -> None:
        self.backbone = FrozenBackbone(cut, preprocessing, device, precision)
        fingerprint = {
            **fingerprint_backbone(cut, preprocessing, known_digests),
            "device": device.type,
            "precision": resolve_precision(precision, device, {}),
            "batch": self.backbone.batch_size,
        }
        image_size = preprocessing.image_size
        description = ", ".join(f"{tensor.name} ({'x'.join(map(str, tensor.shape))})" for tensor in cut.boundary)
        self._store = Store("features", fingerprint, f"{description} of images of {image_size} x {image_size} pixels")

    def get_or_compute(
        self, request: FeatureRequest, batch_size: int, loader_config: LoaderConfig
    ) -> CachedFeatureLoader:
        """Return a loader of the requested features, computing those that are missing, once for identical images.

        Corrupt images are skipped or raised as an ImageLoader does. Raises CacheFullError, DataError for an image that
        changes while it is read, and StopRequestedError, after which the features computed so far are stored.
        """
        cache_fill = _CacheFill(self._store, self.backbone, request, loader_config)
        # Copies of a corrupt image are read in the second round, because each is reported under its own path.
        for unique in (True, False):
            if any(cache_fill.missing(unique)):
                cache_fill.compute_missing(unique)
        if any(cache_fill.missing(unique=False)):
            raise RunError(
                f"{request.task.name}: features just computed were evicted from {self._store.folder}; raise "
                "FTCLI_CACHE_LIMIT, or disable the cache with cache: off in a recipe or --no-cache"
            )
        return CachedFeatureLoader(
            self._store,
            self.backbone,
            cache_fill.samples,
            batch_size,
            dict(zip(request.rng_keys, cache_fill.record_keys, strict=True)),
            cache_fill.skipped,
            is_deterministic=not request.transform.is_random and len(request.rng_keys) == 1,
        )


class _CacheFill:
    """The record keys of a request, and the images found to be corrupt while its missing features are computed."""

    def __init__(
        self, store: Store, backbone: FrozenBackbone, request: FeatureRequest, loader_config: LoaderConfig
    ) -> None:
        self.samples = tuple(request.samples)
        self.skipped: dict[str, SkippedImage] = {}
        self._store = store
        self._backbone = backbone
        self._request = request
        self._loader_config = loader_config
        paths = [sample.path for sample in self.samples]
        self._file_hashes = hash_files(loader_config.root, paths, loader_config.rehash)
        self.record_keys = [self._make_record_keys(rng_key) for rng_key in request.rng_keys]

    def _make_record_keys(self, rng_key: RngKey | None) -> bytes:
        """Return the keys of all samples for a view, concatenated, with zeros for unreadable images."""
        transform = self._request.transform
        if transform.is_random and rng_key is None:
            raise ValueError("a random transform needs an RngKey")
        fingerprint, key_text = transform.fingerprint, repr(rng_key) if transform.is_random else ""
        # The random generator of an augmented view is seeded with the path too.
        return b"".join(
            _NO_KEY
            if file_hash is None
            else make_key(file_hash, fingerprint, key_text, sample.path if transform.is_random else "")
            for sample, file_hash in zip(self.samples, self._file_hashes, strict=True)
        )

    def missing(self, unique: bool) -> list[list[int]]:
        """Return, for each view, the indices of the samples without a record that are not known to be corrupt.

        With `unique`, only the first of the samples with equal keys is returned.
        """
        indices_by_view: list[list[int]] = []
        seen = set[bytes]()
        for keys in self.record_keys:
            view_keys = [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
            indices = []
            for index, (key, is_stored) in enumerate(zip(view_keys, self._store.contains(view_keys), strict=True)):
                if is_stored or self.samples[index].path in self.skipped or (unique and key in seen):
                    continue
                if key != _NO_KEY:
                    seen.add(key)
                indices.append(index)
            indices_by_view.append(indices)
        return indices_by_view

    def compute_missing(self, unique: bool) -> None:
        """Compute and store the missing features. Raises as `FeatureCache.get_or_compute` does."""
        task = self._request.task
        with self._store.writer(task) as writer:
            missing = self.missing(unique)  # another process may have computed some in the meantime
            counter = ProgressCounter(task, total=sum(map(len, missing)))
            self._reserve_space(writer, counter.total)
            for rng_key, keys, indices in zip(self._request.rng_keys, self.record_keys, missing, strict=True):
                remaining = [index for index in indices if self.samples[index].path not in self.skipped]
                counter.total -= len(indices) - len(remaining)
                if remaining:
                    self._compute_view(rng_key, keys, remaining, writer, counter)

    def _reserve_space(self, writer: StoreWriter, num_records: int) -> None:
        num_bytes = num_records * (self._backbone.row_bytes + _RECORD_OVERHEAD)
        if not writer.reserve(num_bytes):
            raise CacheFullError(
                f"{self._request.task.name}: the features of {format_count(num_records, 'image')}, "
                f"{num_bytes / 1e6:.1f} MB, do not fit in the cache; raise FTCLI_CACHE_LIMIT, free disk space, or set "
                "cache: off"
            )

    def _compute_view(
        self, rng_key: RngKey | None, keys: bytes, indices: list[int], writer: StoreWriter, counter: ProgressCounter
    ) -> None:
        with (
            self._open_loader(indices) as loader,
            closing(
                self._backbone.compute_batches(
                    loader.batches(rng_key=rng_key if self._request.transform.is_random else None)
                )
            ) as results,
        ):
            for sample_indices, (batch, rows) in zip(
                batch_indices(indices, self._backbone.batch_size), results, strict=True
            ):
                self.skipped |= {skipped_image.path: skipped_image for skipped_image in batch.skipped}
                readable = [index for index in sample_indices if self.samples[index].path not in self.skipped]
                self._check_unchanged(readable)
                for index, row in zip(readable, rows, strict=True):
                    writer.add(keys[KEY_BYTES * index : KEY_BYTES * (index + 1)], row.data)
                counter.advance(len(sample_indices))

    def _open_loader(self, indices: list[int]) -> ImageLoader:
        batch_size = self._backbone.batch_size
        # Starting workers takes longer than loading a single batch.
        num_workers = self._loader_config.num_workers if len(indices) > batch_size else 0
        samples = [self.samples[index] for index in indices]
        transform = replace(self._request.transform, is_deferred=False)  # no device applies batch transforms here
        config = replace(self._loader_config, num_workers=num_workers, pin_memory=False, pixel_cache=None)
        return ImageLoader(samples, transform, batch_size, config)

    def _check_unchanged(self, indices: list[int]) -> None:
        """Raise DataError if a file has changed since it was hashed."""
        paths = [self.samples[index].path for index in indices]
        for index, file_hash in zip(indices, hash_files(self._loader_config.root, paths), strict=True):
            if file_hash != self._file_hashes[index]:
                path = self._loader_config.root / self.samples[index].path
                raise DataError(f"{path}: changed while it was read; run again when it no longer changes")
