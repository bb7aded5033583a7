"""The feature pipeline: cut a model after its frozen backbone, and load its features from the cache or compute them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ftcli.data.batches import BatchLoader
from ftcli.data.loader import LoaderConfig
from ftcli.data.pixel_cache import PixelCache
from ftcli.features.cache import CacheFullError, FeatureCache, FeatureRequest
from ftcli.features.fingerprint import NO_DIGESTS, TensorDigests
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.loaders import CachedFeatureLoader, Clock, FeatureLoader
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.freezing import FrozenNames
from ftcli.results import Preprocessing
from ftcli.runtime import autocast

logger = logging.getLogger(__name__)

ForwardFn = Callable[[tuple[Tensor, ...]], Tensor]
"""Computes the logits (n, classes) of a batch's inputs in float32, in the current mode of the model."""


@dataclass(frozen=True)
class NoCut:
    """The reason why a model cannot be cut after a frozen backbone."""

    reason: str


@dataclass(frozen=True)
class OpenedFeatures:
    """A loader of features for each request; `is_cached` if they are read from the cache."""

    loaders: tuple[BatchLoader, ...]
    is_cached: bool


@dataclass(frozen=True)
class FeaturePipeline:
    """A model cut into a frozen backbone, whose features are cached, and a suffix that computes logits from them.

    The pipeline shares the model's tensors and follows the modes of its modules.
    """

    cut: ModelCut
    cache: FeatureCache
    preprocessing: Preprocessing
    device: torch.device
    precision: str

    @property
    def backbone(self) -> FrozenBackbone:
        return self.cache.backbone

    @property
    def train_forward(self) -> ForwardFn:
        """The forward function of the suffix in train mode."""
        return self._create_forward(self.cut.training_suffix)

    @property
    def eval_forward(self) -> ForwardFn:
        """The forward function of the suffix in eval mode."""
        return self._create_forward(self.cut.suffix)

    def _create_forward(self, suffix: nn.Module) -> ForwardFn:
        def forward(inputs: tuple[Tensor, ...]) -> Tensor:
            on_device = (value.to(self.device, non_blocking=True) for value in inputs)
            with autocast(self.device, self.precision):
                logits: Tensor = suffix(*on_device)
            return logits.float()

        return forward

    @contextmanager
    def open(
        self,
        requests: Sequence[FeatureRequest],
        batch_size: int,
        loader_config: LoaderConfig,
        use_cache: bool,
        fill_pixel_caches: Callable[[], Sequence[PixelCache | None]] | None = None,
        clock: Clock = nullcontext,
    ) -> Iterator[OpenedFeatures]:
        """Open a loader of features for each request: cached if all fit in the cache, else computed in each pass.

        Cached and computed features are bitwise equal on a CPU. If features are computed in each pass,
        `fill_pixel_caches` returns a pixel cache for each request, and `clock` measures the computation. Raises
        StopRequestedError and the errors of reading images.
        """
        cached_loaders = self._load_cached(requests, batch_size, loader_config) if use_cache else None
        if cached_loaders is not None:
            yield OpenedFeatures(cached_loaders, is_cached=True)
            return
        for request in requests:
            request.task.check_stop()
        pixel_caches = fill_pixel_caches() if fill_pixel_caches else [None] * len(requests)
        with ExitStack() as stack:
            loaders = [
                stack.enter_context(
                    FeatureLoader(
                        self.backbone,
                        request.samples,
                        request.transform,
                        batch_size,
                        replace(loader_config, pixel_cache=pixel_cache),
                        clock,
                    )
                )
                for request, pixel_cache in zip(requests, pixel_caches, strict=True)
            ]
            yield OpenedFeatures(tuple(loaders), is_cached=False)

    def _load_cached(
        self, requests: Sequence[FeatureRequest], batch_size: int, loader_config: LoaderConfig
    ) -> tuple[CachedFeatureLoader, ...] | None:
        """Return a cached loader for each request; None, with a message, if the features do not fit in the cache."""
        loaders = []
        for request in requests:
            try:
                loaders.append(self.cache.get_or_compute(request, batch_size, loader_config))
            except CacheFullError:
                logger.info(f"{request.task.name}: the features do not fit in the cache and are computed in each pass")
                return None
        return tuple(loaders)


def create_pipeline(
    model: nn.Module,
    frozen_names: FrozenNames,
    preprocessing: Preprocessing,
    device: torch.device,
    precision: str,
    known_digests: TensorDigests = NO_DIGESTS,
) -> FeaturePipeline | NoCut:
    """Cut a model, which has to be on the device, after its frozen backbone and open the cache of its features."""
    cut = cut_model(model, frozen_names.parameters, frozen_names.modules, preprocessing.image_size)
    if cut is None:
        return NoCut("the model's code cannot be traced")
    if cut.is_uncut:
        return NoCut("trainable layers come before the frozen ones")
    cache = FeatureCache(cut, preprocessing, device, precision, known_digests)
    return FeaturePipeline(cut, cache, preprocessing, device, precision)
