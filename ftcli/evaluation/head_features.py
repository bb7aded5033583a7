"""The inputs of a model's head, from the feature cache, and the logits that the head computes from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from ftcli.caching.eviction import get_cache_limit
from ftcli.data.batches import BatchLoader
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import build_eval_transform
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.logits import NO_TTA, FlipDims, image_forward
from ftcli.features.cache import FeatureRequest
from ftcli.features.pipeline import FeaturePipeline, ForwardFn, NoCut, create_pipeline
from ftcli.models.cut import ModelCut
from ftcli.models.freezing import FrozenNames
from ftcli.results import Preprocessing, ProgressTask

HEAD_BATCH_SIZE = 64
"""The batch size of heads in evaluation, whatever the batch size of the recipe, so that logits keep their bits."""


def cut_at_head(
    model: nn.Module, head: str, preprocessing: Preprocessing, device: torch.device, precision: str
) -> FeaturePipeline | None:
    """Move a model to the device in channels_last and cut it before its head.

    Returns None if the only boundary tensor is not the input of the head.
    """
    model_on_device = model.to(device).to(memory_format=torch.channels_last)
    head_prefix = f"{head}."
    frozen_names = FrozenNames(
        frozenset(name for name, _ in model_on_device.named_parameters() if not name.startswith(head_prefix)),
        frozenset(
            name for name, _ in model_on_device.named_modules() if name != head and not name.startswith(head_prefix)
        ),
    )
    pipeline = create_pipeline(model_on_device, frozen_names, preprocessing, device, precision)
    if isinstance(pipeline, NoCut) or len(pipeline.cut.boundary) != 1 or not _is_head_input(pipeline.cut, head):
        return None
    return pipeline


@contextmanager
def open_head_features(
    pipeline: FeaturePipeline, samples: Sequence[Sample], loader_config: LoaderConfig, task: ProgressTask
) -> Iterator[BatchLoader]:
    """Open a loader of the head's inputs for samples in evaluation. Raises as `FeaturePipeline.open` does."""
    transform = build_eval_transform(pipeline.preprocessing)
    request = FeatureRequest(samples, transform, (None,), task.subtask("feature extraction"))
    with pipeline.open([request], HEAD_BATCH_SIZE, loader_config, use_cache=get_cache_limit() > 0) as opened:
        yield opened.loaders[0]


@contextmanager
def open_eval_loader(
    classifier: Classifier,
    pipeline: FeaturePipeline | None,
    samples: Sequence[Sample],
    loader_config: LoaderConfig,
    batch_size: int,
    task: ProgressTask,
    views: tuple[FlipDims, ...] = NO_TTA,
) -> Iterator[tuple[BatchLoader, ForwardFn]]:
    """Open a loader of samples and the function that computes their logits.

    With a pipeline cut at the head the loader gives the inputs of the head, without one images, in batches of
    `batch_size`, whose logits are averaged over the views.
    """
    if pipeline is not None:
        with open_head_features(pipeline, samples, loader_config, task) as feature_loader:
            yield feature_loader, _pad_batches(pipeline.eval_forward)
        return
    with ImageLoader(samples, classifier.transform, batch_size, loader_config) as image_loader:
        yield image_loader, image_forward(classifier, views)


@contextmanager
def capture_io(layer: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Capture the inputs and outputs of a layer's calls, on the CPU."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(_: nn.Module, layer_inputs: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(layer_inputs[0].cpu())
        outputs.append(output.cpu())

    with layer.register_forward_hook(record):
        yield inputs, outputs


def _pad_batches(head_forward: ForwardFn) -> ForwardFn:
    """Return a function that fills up batches with zeros, so that the head always computes in the same shape."""

    def forward(inputs: tuple[Tensor, ...]) -> Tensor:
        (features,) = inputs
        padded = torch.cat([features, features.new_zeros((HEAD_BATCH_SIZE - len(features), *features.shape[1:]))])
        return head_forward((padded,))[: len(features)]

    return forward


def _is_head_input(cut: ModelCut, head: str) -> bool:
    """Return whether the boundary tensor is computed outside the head and read only inside it."""
    if not (isinstance(cut.prefix, fx.GraphModule) and isinstance(cut.suffix, fx.GraphModule)):
        return cut.boundary[0].name == f"{head}.input"
    (output,) = (node for node in cut.prefix.graph.nodes if node.op == "output")
    (value,) = output.all_input_nodes
    (placeholder,) = (node for node in cut.suffix.graph.nodes if node.op == "placeholder")
    return not _is_within(value, head) and all(_is_within(user, head) for user in placeholder.users)


def _is_within(node: fx.Node, module: str) -> bool:
    return module in node.meta.get("nn_module_stack", {})
