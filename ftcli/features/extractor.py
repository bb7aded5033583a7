"""Extraction of layer outputs from a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """The features of n images: a float32 tensor (n, *shape) on the CPU per layer, with labels int64 (n,) and paths.

    Corrupt images are in `skipped`; n is 0 if all are.
    """

    features: tuple[Tensor, ...]
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]


@dataclass(frozen=True)
class Extractor:
    """Extracts the outputs of layers in one forward pass, and those of graph nodes in a second one.

    The network is moved to the device, to channels_last and to eval mode, and is otherwise unchanged. Memory use does
    not depend on the number of images.
    """

    model: nn.Module
    preprocessing: Preprocessing
    layers: tuple[LayerSpec, ...]
    pool: Pool | None
    device: torch.device
    precision: str

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each layer's features for one image. Raises RecipeError for a layer that cannot be pooled."""
        return tuple(pool_shape(self.model, layer, self.pool) for layer in self.layers)

    def extract(self, loader: ImageLoader) -> Iterator[FeatureBatch]:
        """Yield the features of all images of a loader, batch by batch.

        The same batches give the same bits on the CPU. Raises RecipeError for a layer that cannot be pooled, RunError
        if memory runs out or a feature is not finite, and whatever the loader raises.
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
        """Yield the features of some samples from a loader of cached head inputs, without running the network.

        The input of the head must be the only layer. Raises RunError for a feature that is not finite.
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
            outputs[layer] = pooled.clone(memory_format=torch.contiguous_format)  # later layers may change it in place

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
                    f"{layer.name}: the output for {path} is not finite; the weights are damaged or do not suit such "
                    "images, give others"
                )


@contextmanager
def _forward_hooks(
    model: nn.Module, layers: Sequence[LayerSpec], on_output: Callable[[LayerSpec, Tensor], None]
) -> Iterator[None]:
    """Pass each layer's output to `on_output` during forward passes within the context."""
    with ExitStack() as hooks:
        for layer in layers:
            module = model.get_submodule(layer.target) if layer.kind != "node" else model
            if layer.kind == "input":
                hooks.enter_context(
                    module.register_forward_pre_hook(lambda _module, inputs, layer=layer: on_output(layer, inputs[0]))
                )
            elif layer.kind == "module":
                hooks.enter_context(
                    module.register_forward_hook(lambda _module, _inputs, output, layer=layer: on_output(layer, output))
                )
        yield
