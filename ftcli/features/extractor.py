"""From images to the outputs of a network's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ftcli.data.batches import BatchLoader, SkippedImage
from ftcli.data.loader import ImageLoader
from ftcli.data.transforms import Normalizer
from ftcli.errors import RunError
from ftcli.features.graph_nodes import build_node_graph, run_node_graph
from ftcli.features.layers import LayerSpec
from ftcli.features.pooling import Pool, pool_shape, pool_values
from ftcli.results import Preprocessing
from ftcli.runtime import autocast, raise_on_oom


@dataclass(frozen=True)
class FeatureBatch:
    """The features of n images: a tensor (n, *shape) of float32 on the CPU for each layer, labels as int64 (n,) and
    paths relative to the root of the images.

    `left_out` are the images that are broken; if all are, n is 0.
    """

    features: tuple[Tensor, ...]
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]


@dataclass(frozen=True)
class Extractor:
    """Takes the outputs of a network's layers for images, in one pass for all of them; graph nodes share one of their
    own, for a graph does not call the modules that it goes through.

    The network, moved to the device, in the memory format that convolutions are fastest with, and in eval mode, is
    otherwise left as it was: no hook stays on it. Memory does not depend on the number of images.
    """

    model: nn.Module
    preprocessing: Preprocessing
    layers: tuple[LayerSpec, ...]
    pool: Pool | None
    device: torch.device
    precision: str

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """What is kept of each layer for one image. Raises RecipeError for what cannot be pooled."""
        return tuple(pool_shape(self.model, layer, self.pool) for layer in self.layers)

    def extract(self, loader: ImageLoader) -> Iterator[FeatureBatch]:
        """The features of every image of a loader, batch by batch, in its order.

        The same batches give the same bits on the CPU. Raises RecipeError for a layer that cannot be pooled, RunError
        where memory runs out or where a feature is not finite, with the layer and the first image, and what the loader
        raises.
        """
        shapes = self.shapes
        with raise_on_oom():
            model = self.model.to(self.device).to(memory_format=torch.channels_last).eval()
        normalize = Normalizer(self.preprocessing, self.device)
        nodes = [layer.target for layer in self.layers if layer.kind == "node"]
        graph = build_node_graph(model, nodes) if nodes else None
        for batch in loader.batches():
            features = tuple(torch.empty(0, *shape) for shape in shapes)
            if batch.paths:
                with raise_on_oom(), torch.inference_mode():
                    images = batch.images.to(self.device, non_blocking=True)
                    inputs = normalize(images).contiguous(memory_format=torch.channels_last)
                    with autocast(self.device, self.precision):
                        features = self._compute(model, graph, inputs)
                self._check_finite(features, batch.paths)
            yield FeatureBatch(features, batch.labels, batch.paths, batch.skipped)

    def pool_cached(self, loader: BatchLoader, indices: Sequence[int]) -> Iterator[FeatureBatch]:
        """The same for the samples at some places of a feed of what the head is given, where that is the one layer.
        This network does nothing.

        Raises RunError where a value is not finite, and what the feed raises.
        """
        (layer,) = self.layers
        assert layer.kind == "input"
        for batch in loader.batches(indices):
            pooled = pool_values(batch.inputs[0], layer, self.pool).contiguous()
            if batch.paths:
                self._check_finite((pooled,), batch.paths)
            yield FeatureBatch((pooled,), batch.labels, batch.paths, batch.skipped)

    def _compute(self, model: nn.Module, graph: fx.GraphModule | None, inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: dict[LayerSpec, Tensor] = {}
        layer_of_node = {layer.target: layer for layer in self.layers if layer.kind == "node"}

        def record(layer: LayerSpec, output: Tensor) -> None:
            pooled = pool_values(output, layer, self.pool)
            outputs[layer] = pooled.clone(memory_format=torch.contiguous_format)  # what follows may work in place

        if len(layer_of_node) < len(self.layers):
            with _forward_hooks(model, self.layers, record):
                model(inputs)
        if graph is not None:
            run_node_graph(graph, inputs, lambda name, value: record(layer_of_node[name], value))
        return tuple(outputs[layer].cpu() for layer in self.layers)

    def _check_finite(self, features: Sequence[Tensor], paths: Sequence[str]) -> None:
        for layer, values in zip(self.layers, features, strict=True):
            nonfinite = ~values.isfinite().reshape(len(values), -1).all(1)
            if nonfinite.any():
                path = paths[int(nonfinite.nonzero()[0])]
                raise RunError(
                    f"{layer.name}: its output for {path} is not finite; the weights do not suit such images or are "
                    "damaged, give others"
                )


@contextmanager
def _forward_hooks(
    model: nn.Module, layers: Sequence[LayerSpec], on_output: Callable[[LayerSpec, Tensor], None]
) -> Iterator[None]:
    """Hand over each layer's output, or the input of the head, whenever it is there."""
    hooks = []
    try:
        for layer in layers:
            if layer.kind == "input":
                hooks.append(
                    model.get_submodule(layer.target).register_forward_pre_hook(
                        lambda _module, inputs, layer=layer: on_output(layer, inputs[0])
                    )
                )
            elif layer.kind == "module":
                hooks.append(
                    model.get_submodule(layer.target).register_forward_hook(
                        lambda _module, _inputs, output, layer=layer: on_output(layer, output)
                    )
                )
        yield
    finally:
        for hook in hooks:
            hook.remove()
