"""What the frozen part of a network gives for images: computed once, kept on the disk, found by what it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from ftcli.caching.eviction import evict
from ftcli.caching.file_hashes import hash_files
from ftcli.caching.store import Store, StoreWriter, make_key
from ftcli.data.batches import RngKey, SkippedImage, batch_indices
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform
from ftcli.errors import DataError, RunError
from ftcli.features.fingerprint import NO_DIGESTS, TensorDigests, fingerprint_backbone, format_rng_key
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.loaders import KEY_BYTES, CachedFeatureLoader
from ftcli.models.cut import ModelCut
from ftcli.results import Preprocessing, Progress, Reporter, format_count
from ftcli.runtime import resolve_precision

_RECORD_OVERHEAD = 64  # bytes of a record beside its values
_NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True)
class ViewSpec:
    """A way to look at every image: a transform, and the draw of its random part; the draw does nothing where the
    transform has none."""

    transform: ImageTransform
    rng_key: RngKey | None


class CacheFullError(RunError):
    """What is asked for does not fit into the cache. Nothing was computed."""


class FeatureCache:
    """The values that cross a cut, for images seen in certain ways, kept from one process to the next.

    They are known by what they are made of: the image's bytes, its way to the network, every tensor and layer of the
    prefix, the place of the cut, device type and number format, and the versions of the libraries. Whatever of this
    differs in a bit makes other records; nothing else does. `prefix` is what computes them.
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
        description = ", ".join(
            f"{boundary_tensor.name} ({'x'.join(map(str, boundary_tensor.shape))})" for boundary_tensor in cut.boundary
        )
        self._store = Store("features", fingerprint, f"{description} of images of {image_size} x {image_size} pixels")

    def get_or_compute(
        self,
        samples: Sequence[Sample],
        views: Sequence[ViewSpec],
        batch_size: int,
        loader_config: LoaderConfig,
        reporter: Reporter,
        task: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> CachedFeatureLoader | None:
        """The values of samples, each seen in all `sights`, as a feed of batches of `batch_size`; what is not kept yet
        is computed first, identical images once. None if `stop` became true; what was computed by then is kept.

        Raises CacheFullError where there is none for it in the cache, DataError for an image that changes while it is read, and
        what a ImageLoader raises. Broken images are left out of the feed as a ImageLoader leaves them out.
        """
        cache_fill = _CacheFill(self._store, self.backbone, tuple(samples), loader_config)
        cache_fill.add_keys(views)
        for unique in (True, False):  # the twins of a broken image are looked at too, for each is told by its name
            missing = cache_fill.missing(unique)
            if any(missing) and not cache_fill.compute_missing(
                views, unique, _FillProgress(reporter, task, should_stop)
            ):
                return None
        if any(cache_fill.missing(False)):
            raise RunError(
                f"{task}: what was computed has left {self._store.folder} meanwhile; give the cache more room with "
                "FTCLI_CACHE_LIMIT, or do without it: cache: off in a recipe, or --no-cache"
            )
        self._store.release()
        is_deterministic = not any(view.transform.is_random for view in views)
        record_keys = {
            view.rng_key: record_keys for view, record_keys in zip(views, cache_fill.record_keys, strict=True)
        }
        return CachedFeatureLoader(
            self._store,
            self.backbone,
            cache_fill.samples,
            batch_size,
            record_keys,
            cache_fill.skipped,
            is_deterministic and len(views) == 1,
        )


@dataclass
class _FillProgress:
    """How the computing is followed and ended."""

    reporter: Reporter
    task: str
    should_stop: Callable[[], bool]
    start_time: float = field(default_factory=time.monotonic)
    num_done: int = 0
    num_total: int = 0

    def update(self, num_images: int) -> bool:
        """Tell that so many more are done; returns whether to go on."""
        self.num_done += num_images
        rate = self.num_done / max(time.monotonic() - self.start_time, 1e-9)
        self.reporter.update_progress(Progress(self.task, self.num_done, self.num_total, rate))
        return not self.should_stop()


class _CacheFill:
    """The samples of a gathering, their keys for each sight, and which of them are broken."""

    def __init__(
        self, store: Store, backbone: FrozenBackbone, samples: tuple[Sample, ...], loader_config: LoaderConfig
    ) -> None:
        self.samples = samples
        self.record_keys: list[bytes] = []
        self.skipped: dict[str, SkippedImage] = {}
        self._store = store
        self._backbone = backbone
        self._loader_config = loader_config
        self._file_hashes = hash_files(loader_config.root, [sample.path for sample in samples], loader_config.rehash)

    def add_keys(self, views: Sequence[ViewSpec]) -> None:
        """Work out the key of each sample in each sight, one after the other; one of zeros where it is unreadable."""
        for view in views:
            transform_identity = view.transform.fingerprint
            is_random = view.transform.is_random
            if is_random and view.rng_key is None:
                raise ValueError("a random transform needs a draw, or no two looks at an image are the same")
            # A random look depends on the image's name too, which the draw is mixed with.
            key_text = format_rng_key(view.rng_key) if is_random and view.rng_key is not None else ""
            self.record_keys.append(
                b"".join(
                    _NO_KEY
                    if file_hash is None
                    else make_key(file_hash, transform_identity, key_text, sample.path if is_random else "")
                    for sample, file_hash in zip(self.samples, self._file_hashes, strict=True)
                )
            )

    def missing(self, unique: bool) -> list[list[int]]:
        """For each sight, the places of the samples that have no record and are not known to be broken; with `once`, of
        those with equal keys the first alone."""
        indices_by_view: list[list[int]] = []
        seen = set[bytes]()
        for keys in self.record_keys:
            view_keys = [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
            indices = []
            for index, (key, is_cached) in enumerate(zip(view_keys, self._store.contains(view_keys), strict=True)):
                if is_cached or self.samples[index].path in self.skipped or (unique and key in seen):
                    continue
                if key != _NO_KEY:
                    seen.add(key)
                indices.append(index)
            indices_by_view.append(indices)
        return indices_by_view

    def compute_missing(self, views: Sequence[ViewSpec], unique: bool, progress: _FillProgress) -> bool:
        """Compute what is missing and keep it; False if that was stopped. Raises as `FeatureCache.gather`."""
        with self._store.writer(progress.reporter, progress.should_stop) as writer:
            if writer is None:
                return False
            missing = self.missing(unique)  # another process may have computed it while this one waited
            progress.num_total = sum(map(len, missing))
            self._reserve_space(progress)
            for view, keys, indices in zip(views, self.record_keys, missing, strict=True):
                remaining = [index for index in indices if self.samples[index].path not in self.skipped]
                progress.num_total -= len(indices) - len(remaining)
                if remaining and not self._compute(view, keys, remaining, writer, progress):
                    return False
        return True

    def _reserve_space(self, progress: _FillProgress) -> None:
        num_bytes = progress.num_total * (self._backbone.row_bytes + _RECORD_OVERHEAD)
        if not evict(num_bytes):
            raise CacheFullError(
                f"{progress.task}: {num_bytes / 1e6:.1f} MB of the cache are needed for "
                f"{format_count(progress.num_total, 'image')}, more than there is room for; raise FTCLI_CACHE_LIMIT, free some "
                "of the disk, or set cache: off"
            )

    def _compute(
        self, view: ViewSpec, keys: bytes, indices: list[int], writer: StoreWriter, progress: _FillProgress
    ) -> bool:
        rng_key = view.rng_key if view.transform.is_random else None
        with (
            self._open_loader(view, indices) as loader,
            closing(self._backbone.compute_batches(loader.batches(rng_key=rng_key))) as results,
        ):
            for sample_indices, (batch, rows) in zip(
                batch_indices(indices, self._backbone.batch_size), results, strict=True
            ):
                self.skipped |= {skipped_image.path: skipped_image for skipped_image in batch.skipped}
                readable = [index for index in sample_indices if self.samples[index].path not in self.skipped]
                self._check_unchanged(readable)
                for index, row in zip(readable, rows, strict=True):
                    writer.add(keys[KEY_BYTES * index : KEY_BYTES * (index + 1)], row.data)
                if not progress.update(len(sample_indices)):
                    return False
        return True

    def _open_loader(self, view: ViewSpec, indices: list[int]) -> ImageLoader:
        loader_config, batch_size = self._loader_config, self._backbone.batch_size
        num_workers = (
            loader_config.num_workers if len(indices) > batch_size else 0
        )  # a single batch is sooner read than handed over
        samples = [self.samples[index] for index in indices]
        transform = replace(view.transform, is_deferred=False)  # nobody makes its changes afterwards
        view_config = replace(loader_config, num_workers=num_workers, pin_memory=False, pixel_cache=None)
        return ImageLoader(samples, transform, batch_size, view_config)

    def _check_unchanged(self, indices: list[int]) -> None:
        """Raise DataError where a file is no longer the one that its record would be known by."""
        paths = [self.samples[index].path for index in indices]
        for index, file_hash in zip(indices, hash_files(self._loader_config.root, paths), strict=True):
            if file_hash != self._file_hashes[index]:
                path = self._loader_config.root / self.samples[index].path
                raise DataError(f"{path}: changed while it was read; run again when it stays as it is")
