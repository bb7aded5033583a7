"""Extraction of layer outputs from a network, and their buffer in temporary files."""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ftcli.data.batches import BatchLoader, SkippedImage
from ftcli.data.loader import ImageLoader
from ftcli.data.transforms import Normalizer
from ftcli.errors import RunError
from ftcli.features.call_graph import build_node_graph, run_node_graph
from ftcli.features.layers import LayerSpec
from ftcli.features.pooling import Pool, pool_shape, pool_values
from ftcli.files import describe_write_error
from ftcli.models.hooks import forward_hooks
from ftcli.results import Preprocessing
from ftcli.runtime import autocast, raise_on_oom

_READ_BYTES = 4 * 2**20  # of the largest layer, read at a time


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
            with _layer_hooks(model, self.layers, record):
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
                    f"{layer.name}: the output for {path} is not finite; the weights are corrupt or do not suit such "
                    "images, give others"
                )


@contextmanager
def _layer_hooks(
    model: nn.Module, layers: Sequence[LayerSpec], on_output: Callable[[LayerSpec, Tensor], None]
) -> Iterator[None]:
    """Pass each layer's output to `on_output` during forward passes within the context."""

    def pass_on(kind: str, target: str, value: Tensor) -> None:
        for layer in layers:
            if (layer.kind, layer.target) == (kind, target):
                on_output(layer, value)

    inputs, outputs = ([layer.target for layer in layers if layer.kind == kind] for kind in ("input", "module"))
    with (
        forward_hooks(model, inputs, on_input=lambda target, values: pass_on("input", target, values[0])),
        forward_hooks(model, outputs, on_output=lambda target, value: pass_on("module", target, value)),
    ):
        yield


class FeatureBuffer:
    """The features of images in float32, one file per layer, with labels, paths and splits. A context manager.

    The files have no name and vanish with the process. They are in the folder of `target`, or in the system's temporary
    folder. With `as_float16` a value beyond the range of float16 is an error when it is added.
    """

    def __init__(
        self,
        target: Path | None,
        layers: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        as_float16: bool = False,
    ) -> None:
        self.layers, self.shapes = tuple(layers), tuple(shapes)
        self.paths: list[str] = []
        self.splits: list[str] = []
        self._target = target or Path(tempfile.gettempdir()) / "features"
        self._as_float16 = as_float16
        self._labels = array("q")
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> FeatureBuffer:
        try:
            for _ in self.layers:
                file = tempfile.TemporaryFile(buffering=0, dir=self._target.parent)
                self._files.append(self._stack.enter_context(file))
        except OSError as error:
            self._stack.close()
            raise RunError(describe_write_error(self._target, 0, error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of each image."""
        return np.array(self._labels, dtype=np.int64)

    def add(self, batch: FeatureBatch, split: str) -> None:
        """Append the features of some images of a split.

        Raises RunError if the disk is full, or for a value beyond the range of float16.
        """
        for layer, file, tensor in zip(self.layers, self._files, batch.features, strict=True):
            values = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
            if self._as_float16:
                _check_float16_range(layer, values, batch.paths)
            self._write(file, values)
        self._labels.extend(batch.labels.tolist())
        self.paths += batch.paths
        self.splits += [split] * len(batch.paths)

    def features(self, layer_index: int) -> NDArray[np.float32]:
        """Return the features of a layer, (n, *shape), as a read-only memory map."""
        shape = (len(self), *self.shapes[layer_index])
        return np.memmap(self._files[layer_index], dtype=np.float32, mode="r", shape=shape)

    def num_rows_per_chunk(self) -> int:
        """Return the number of images to read at a time: some megabytes of the largest layer."""
        return max(1, _READ_BYTES // (4 * max(map(math.prod, self.shapes))))

    def read(self, layer_index: int, start: int, end: int) -> NDArray[np.float32]:
        """Return a copy of a layer's features for images `start` up to `end`."""
        shape, end = self.shapes[layer_index], min(end, len(self))
        size = math.prod(shape)
        file = self._files[layer_index]
        file.seek(4 * start * size)
        return np.fromfile(file, dtype=np.float32, count=(end - start) * size).reshape(end - start, *shape)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges (start, end) to read one after another."""
        num_rows = self.num_rows_per_chunk()
        return ((start, min(start + num_rows, len(self))) for start in range(0, len(self), num_rows))

    def _write(self, file: IO[bytes], values: NDArray[np.float32]) -> None:
        remaining = values.data.cast("B") if values.size else memoryview(b"")
        try:
            while remaining:  # an unbuffered write may be partial when the disk is nearly full
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise RunError(describe_write_error(self._target, 0, error)) from error


def _check_float16_range(layer: str, values: NDArray[np.float32], paths: Sequence[str]) -> None:
    with np.errstate(over="ignore"):
        overflows = ~np.isfinite(values.astype(np.float16)).reshape(len(values), -1).all(1)
    if overflows.any():
        index = int(overflows.argmax())
        largest = float(np.abs(values[index]).max())
        raise RunError(
            f"{layer}: the output for {paths[index]} reaches {largest:.6g}, beyond the maximum of float16 (65504); use "
            "--dtype float32"
        )
