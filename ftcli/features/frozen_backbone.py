"""The frozen backbone: the part of a model before its cut, optimized for computing features with fused BatchNorm."""

from __future__ import annotations

import copy
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ftcli.data.batches import Batch
from ftcli.data.thread_map import ThreadedMap
from ftcli.data.transforms import Normalizer
from ftcli.models.cut import ModelCut
from ftcli.models.fx_trace import preserve_training_mode
from ftcli.results import Preprocessing
from ftcli.runtime import autocast, raise_on_oom, single_threaded

MAX_BATCH_SIZES = {"cpu": 16}
"""The largest batch size by device type. Larger batches are not faster on a CPU, because they exceed its caches."""

DEFAULT_MAX_BATCH_SIZE = 256
_REFERENCE_IMAGE_SIZE = 320  # batches of larger images have as many pixels as the largest batch of this size
_MAX_PARALLEL_BATCHES = 16
"""The largest number of batches computed in parallel, whose activations are in memory at the same time."""


def choose_batch_size(device: torch.device, image_size: int) -> int:
    """Return the batch size of the frozen backbone, a power of 2."""
    max_batch_size = MAX_BATCH_SIZES.get(device.type, DEFAULT_MAX_BATCH_SIZE)
    max_fitting = max(1, max_batch_size * _REFERENCE_IMAGE_SIZE**2 // max(image_size, _REFERENCE_IMAGE_SIZE) ** 2)
    return 1 << (max_fitting.bit_length() - 1)


class FrozenBackbone:
    """The prefix of a cut model in eval mode, with BatchNorms folded into the preceding convolutions.

    All batches have the same shape, so that on a CPU the features of an image have the same bits in any batch and, for
    a traced model, with any number of threads. The cut model has to be on the device and is not changed. The features
    of an image have `row_bytes` bytes. `num_computed` counts the images of `compute_batches`.
    """

    def __init__(self, cut: ModelCut, preprocessing: Preprocessing, device: torch.device, precision: str) -> None:
        self.batch_size = choose_batch_size(device, preprocessing.image_size)
        self.shapes = tuple(boundary_tensor.shape for boundary_tensor in cut.boundary)
        self.row_bytes = 4 * sum(math.prod(shape) for shape in self.shapes)
        self.num_computed = 0
        self._image_size = preprocessing.image_size
        self._device = device
        self._precision = precision
        self._normalize = Normalizer(preprocessing, device)
        self._module = cut.prefix

    @cached_property
    def _fused_module(self) -> nn.Module:
        """The prefix with folded BatchNorms, created when features are first computed."""
        with preserve_training_mode(self._module):
            module = self._module.eval()
            return fuse_conv_bn(module) if isinstance(module, fx.GraphModule) else module

    @cached_property
    def _submodules(self) -> list[nn.Module]:
        return list(self._fused_module.modules())

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Set eval mode within the context, if it is not set: setting it takes 10% of the time of a small network."""
        if not any(module.training for module in self._submodules):
            yield
            return
        with preserve_training_mode(self._fused_module):
            self._fused_module.eval()
            yield

    def compute(self, images: Tensor) -> NDArray[np.uint8]:
        """Compute the features of at most `batch_size` uint8 images (n, 3, size, size) as rows (n, row_bytes).

        A row has the boundary tensors in float32, one after another, maps in channels_last. Raises RunError if memory
        runs out.
        """
        with self._eval_mode(), self._thread_context():
            return self._compute(images)

    @property
    def num_parallel_batches(self) -> int:
        """The number of batches that `compute_batches` computes in parallel."""
        return min(_MAX_PARALLEL_BATCHES, torch.get_num_threads()) if self._is_thread_safe else 1

    def compute_batches(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, NDArray[np.uint8]], None, None]:
        """Yield each batch with its rows. Close the generator: until then the model is in eval mode.

        On a CPU each torch thread computes its own batch. Threads that share a batch wait for each other at every
        layer, and torch computes the last elements of each share with other instructions, which changes bits.
        """
        num_threads = self.num_parallel_batches

        def compute_one(batch: Batch) -> tuple[Batch, NDArray[np.uint8]]:
            return batch, self._compute(batch.images)

        with self._eval_mode(), self._thread_context() as thread_init:
            threads = ThreadedMap(num_threads, 1, thread_init)
            try:
                for batch, rows in threads.map(compute_one, batches):
                    self.num_computed += len(rows)
                    yield batch, rows
            finally:
                threads.close()

    def _thread_context(self) -> AbstractContextManager[Callable[[], None] | None]:
        """Use one thread for a batch, or all if batches are not computed in parallel."""
        return single_threaded() if self._is_thread_safe else nullcontext()

    @property
    def _is_thread_safe(self) -> bool:
        """True on a CPU for a traced graph, which stores nothing during a forward pass."""
        return self._device.type == "cpu" and isinstance(self._module, fx.GraphModule)

    def _compute(self, images: Tensor) -> NDArray[np.uint8]:
        num_images = len(images)
        if not num_images:
            return np.empty((0, self.row_bytes), dtype=np.uint8)
        with raise_on_oom(), torch.inference_mode():
            if num_images < self.batch_size:
                images = torch.cat([images, images.new_zeros((self.batch_size - num_images, *images.shape[1:]))])
            inputs = self._normalize(images.to(self._device)).contiguous(memory_format=torch.channels_last)
            with autocast(self._device, self._precision):
                values = self._fused_module(inputs)
            rows = torch.cat([_flatten(value[:num_images]) for value in values], 1).cpu()
        return rows.numpy().view(np.uint8)

    def unpack_rows(self, rows: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """Return the boundary tensors (n, ...) of rows in float32, maps in channels_last.

        A single boundary tensor shares the memory of the rows.
        """
        values = torch.from_numpy(rows.view(np.float32))
        if len(self.shapes) == 1:
            return (_unflatten(values, self.shapes[0]),)
        parts = torch.split(values, [math.prod(shape) for shape in self.shapes], 1)
        return tuple(_unflatten(part.contiguous(), shape) for part, shape in zip(parts, self.shapes, strict=True))

    def measure_seconds_per_image(self) -> float:
        """Return the seconds that an image takes, measured on a full batch."""
        shape, generator = (self.batch_size, 3, self._image_size, self._image_size), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with self._eval_mode():  # with all threads, instead of several batches in parallel
            self._compute(images[:1])  # warm-up
            start = time.perf_counter()
            self._compute(images)
            return (time.perf_counter() - start) / self.batch_size


def _flatten(value: Tensor) -> Tensor:
    channels_last = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
    return channels_last.float().reshape(len(value), -1)


def _unflatten(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) != 3:
        return rows.view(len(rows), *shape)
    channels, height, width = shape
    return rows.view(len(rows), height, width, channels).permute(0, 3, 1, 2)


def fuse_conv_bn(network: fx.GraphModule) -> fx.GraphModule:
    """Return a graph whose convolutions contain the scaling of their outputs; its values differ by rounding alone.

    A BatchNorm in eval mode, and products and sums with a constant per channel (FrozenBatchNorm2d, layer scale), are
    fused if they are all that reads the convolution's output. Fused weights are computed in float64. All other layers
    are shared with `network`, which is unchanged.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    fused = fx.GraphModule(network, graph, "FusedBackbone")
    call_counts = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for index, node in enumerate(list(graph.nodes)):
        if node.op == "call_module" and call_counts[node.target] == 1:
            layer = fused.get_submodule(str(node.target))
            if type(layer) is nn.Conv2d:  # a subclass may do more with its weights
                _fuse_readers(fused, node, layer, f"fused_{index}", call_counts)
    graph.lint()
    fused.recompile()
    return fused


def _fuse_readers(
    network: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, name: str, call_counts: Counter[Any]
) -> None:
    """Replace a convolution by a copy that contains the layers after it."""
    fused: nn.Conv2d | None = None
    while len(node.users) == 1:
        (reader,) = node.users
        norm = _get_batch_norm(network, reader, call_counts)
        constant = _get_channel_constant(network, reader, node, conv.out_channels)
        if norm is None and constant is None:
            break
        fused = fused or _to_float64(conv)
        if norm is not None:
            fused = fuse_conv_bn_eval(fused, _to_float64(norm))
        elif constant is not None:
            _fuse_constant(fused, reader.target, constant)
        _remove_reader(network, node, reader)
        if norm is not None and type(norm) is not nn.BatchNorm2d:  # timm's BatchNormAct2d
            _insert_layer(
                network, node, f"{name}_act", nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
            )
            break
    if fused is not None:
        fused.to(conv.weight.device, conv.weight.dtype).to(memory_format=torch.channels_last).requires_grad_(False)
        network.add_submodule(name, fused)
        node.target = name


def _get_batch_norm(network: fx.GraphModule, node: fx.Node, call_counts: Counter[Any]) -> nn.BatchNorm2d | None:
    """Return the layer of a node if it is a BatchNorm in eval mode with running statistics."""
    if node.op != "call_module" or call_counts[node.target] != 1:
        return None
    layer = network.get_submodule(str(node.target))
    is_norm_act = type(layer).__name__ == "BatchNormAct2d" and type(layer).__module__.startswith("timm.")
    if not isinstance(layer, nn.BatchNorm2d) or not (type(layer) is nn.BatchNorm2d or is_norm_act):
        return None
    return None if layer.training or layer.running_mean is None or layer.running_var is None else layer


def _get_channel_constant(network: fx.GraphModule, node: fx.Node, conv: fx.Node, num_channels: int) -> Tensor | None:
    """Return the other operand, (channels) in float64, of a node that multiplies or adds a constant to channels."""
    if node.op != "call_function" or node.target not in (operator.mul, operator.add) or len(node.args) != 2:
        return None
    other = node.args[1] if node.args[0] is conv else node.args[0]
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    path, _, name = str(other.target).rpartition(".")
    value = getattr(network.get_submodule(path), name)
    if not isinstance(value, Tensor) or value.shape not in ((1, num_channels, 1, 1), (num_channels, 1, 1)):
        return None
    return value.detach().cpu().double().flatten()


def _fuse_constant(conv: nn.Conv2d, operation: Any, constant: Tensor) -> None:
    bias = torch.zeros_like(constant) if conv.bias is None else conv.bias.detach()
    if operation is operator.mul:
        conv.weight = nn.Parameter(conv.weight.detach() * constant.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(bias * constant)
    else:
        conv.bias = nn.Parameter(bias + constant)


def _to_float64(layer: Any) -> Any:
    return copy.deepcopy(layer).cpu().double()  # on the CPU: MPS has no float64


def _remove_reader(network: fx.GraphModule, node: fx.Node, reader: fx.Node) -> None:
    """Let the readers of `reader` read `node`, and remove `reader` with its constants."""
    reader.replace_all_uses_with(node)
    constants = [value for value in reader.all_input_nodes if value.op == "get_attr"]
    network.graph.erase_node(reader)
    for constant in constants:
        if not constant.users:
            network.graph.erase_node(constant)


def _insert_layer(network: fx.GraphModule, node: fx.Node, name: str, layer: nn.Module) -> None:
    """Insert a layer after a node."""
    network.add_submodule(name, layer)
    with network.graph.inserting_after(node):
        inserted = network.graph.call_module(name)
    node.replace_all_uses_with(inserted)
    inserted.args = (node,)
