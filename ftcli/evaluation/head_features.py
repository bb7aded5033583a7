"""What the head of a network is given for images: computed once, kept in the cache, and finished by the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ftcli.caching.eviction import get_cache_limit
from ftcli.data.batches import BatchLoader
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import build_eval_transform
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.logits import NO_TTA, FlipDims, ForwardFn, image_forward, suffix_forward
from ftcli.features.cache import CacheFullError, FeatureCache, ViewSpec
from ftcli.features.loaders import FeatureLoader
from ftcli.models.cut import ModelCut, cut_model
from ftcli.results import Preprocessing, Reporter

HEAD_BATCH_SIZE = 64
"""How many images a head finishes at a time, whatever the batch size: an image's logits have the same bits always."""


@dataclass(frozen=True)
class HeadFeatures:
    """A network that was cut before its head, and the cache of what its head is given."""

    cut: ModelCut
    cache: FeatureCache
    preprocessing: Preprocessing

    @contextmanager
    def open_loader(
        self,
        samples: Sequence[Sample],
        loader_config: LoaderConfig,
        reporter: Reporter,
        task: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[BatchLoader | None]:
        """What the head is given for samples as evaluation sees them, in batches of ROWS; what is not kept yet is
        computed first. Where there is no room to keep it, and the reporter is told, it is computed as it is needed,
        with the same bits on the CPU. None if `stop` became true. Raises as `FeatureCache.gather`."""
        transform = build_eval_transform(self.preprocessing)
        if get_cache_limit():
            try:
                loader = self.cache.get_or_compute(
                    samples, [ViewSpec(transform, None)], HEAD_BATCH_SIZE, loader_config, reporter, task, should_stop
                )
            except CacheFullError:
                reporter.info(f"{task}: the cache has no room for what the network gives, so it is computed without it")
            else:
                yield loader
                return
        with FeatureLoader(
            self.cache.backbone, samples, transform, HEAD_BATCH_SIZE, loader_config, nullcontext
        ) as uncached_loader:
            yield uncached_loader

    def head_forward(self, classifier: Classifier) -> ForwardFn:
        """How the head of a classifier, whose network was cut, finishes at most ROWS images: always in one shape."""
        forward_suffix = suffix_forward(self.cut.suffix, classifier)

        def forward(inputs: tuple[Tensor, ...]) -> Tensor:
            (features,) = inputs
            padded = torch.cat([features, features.new_zeros((HEAD_BATCH_SIZE - len(features), *features.shape[1:]))])
            return forward_suffix((padded,))[: len(features)]

        return forward


def cut_at_head(
    model: nn.Module, head: str, preprocessing: Preprocessing, device: torch.device, precision: str
) -> HeadFeatures | None:
    """Cut a network before its head; it is moved to the device first, in the memory format that convolutions are
    fastest with. None where what crosses is not exactly what the head is given."""
    model_on_device = model.to(device).to(memory_format=torch.channels_last)
    head_prefix = f"{head}."
    frozen = {name for name, _ in model_on_device.named_parameters() if not name.startswith(head_prefix)}
    eval_modules = {
        name for name, _ in model_on_device.named_modules() if name != head and not name.startswith(head_prefix)
    }
    cut = cut_model(model_on_device, frozen, eval_modules, preprocessing.image_size)
    if cut is None or cut.is_uncut or len(cut.boundary) != 1 or not _is_head_input(cut, head):
        return None
    return HeadFeatures(cut, FeatureCache(cut, preprocessing, device, precision), preprocessing)


@contextmanager
def open_eval_loader(
    classifier: Classifier,
    head_features: HeadFeatures | None,
    samples: Sequence[Sample],
    loader_config: LoaderConfig,
    batch_size: int,
    reporter: Reporter,
    task: str,
    views: tuple[FlipDims, ...] = NO_TTA,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[BatchLoader, ForwardFn] | None]:
    """Open the head's inputs for the samples, or images in batches of `batch_size` where `head_features` is None.

    Yields a loader and the function that computes logits from its batches, averaged over the views; None after a stop.
    """
    if head_features is not None:
        with head_features.open_loader(
            samples, loader_config, reporter, f"{task}: frozen part", should_stop
        ) as feature_loader:
            yield None if feature_loader is None else (feature_loader, head_features.head_forward(classifier))
        return
    with ImageLoader(samples, classifier.transform, batch_size, loader_config) as loader:
        yield loader, image_forward(classifier, views)


def _is_head_input(cut: ModelCut, head: str) -> bool:
    """Whether the crossing value is computed outside the head, and read inside it alone."""
    if not (isinstance(cut.prefix, fx.GraphModule) and isinstance(cut.suffix, fx.GraphModule)):
        return cut.boundary[0].name == f"{head}.input"
    (output,) = (node for node in cut.prefix.graph.nodes if node.op == "output")
    (value,) = output.all_input_nodes
    (placeholder,) = (node for node in cut.suffix.graph.nodes if node.op == "placeholder")
    return not _is_within(value, head) and all(_is_within(user, head) for user in placeholder.users)


def _is_within(node: fx.Node, module: str) -> bool:
    return module in node.meta.get("nn_module_stack", {})
