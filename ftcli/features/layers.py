"""Layers of a network by name, with the axes of their outputs: modules, the input of the head, and graph nodes."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ftcli.errors import RecipeError, suggest
from ftcli.features.call_graph import (
    CallTrace,
    build_node_graph,
    list_blocks,
    list_graph_nodes,
    resize_model_input,
    run_node_graph,
    trace_calls,
)
from ftcli.models.fx_trace import preserve_training_mode, to_meta
from ftcli.models.summary import FORWARD_ERRORS, ModelSummary, summarize


@dataclass(frozen=True)
class AxisLayout:
    """The axes of a layer's output for one image.

    `channel_axis` is None if it is unknown; the other axes are spatial. `num_prefix_tokens` counts the class and
    register tokens before those of the image.
    """

    channel_axis: int | None = None
    num_prefix_tokens: int = 0


def infer_axis_layout(model: nn.Module, shape: tuple[int, ...], larger_shape: tuple[int, ...] | None) -> AxisLayout:
    """Infer the axes of a layer's output with this shape for one image.

    `larger_shape` is its shape for an image of twice the size: axes that grow are spatial, the other holds the
    channels. If none grows (after adaptive pooling), or if `larger_shape` is None because the network has a fixed image
    size, two equal sides next to each other are spatial if the third differs. Without `larger_shape` their length must
    not be a possible number of tokens, since attention has axes for heads, tokens and dimensions.
    """
    if len(shape) == 1:
        return AxisLayout(0)
    if len(shape) == 2:
        return _infer_token_layout(_TokenCounts(model), shape, larger_shape)
    if len(shape) == 3:
        grown_axes = (
            None if larger_shape is None else tuple(axis for axis in range(3) if shape[axis] != larger_shape[axis])
        )
        if grown_axes:
            return AxisLayout(0 if grown_axes == (1, 2) else 2 if grown_axes == (0, 1) else None)
        is_ambiguous = grown_axes is None and shape[1] > 1 and _TokenCounts(model).list_prefix_counts(shape[1])
        return AxisLayout(None if is_ambiguous else _find_channel_axis(shape))
    return AxisLayout()


def _find_channel_axis(shape: tuple[int, ...]) -> int | None:
    first, second, third = shape
    if second == third and (first != second or first == 1):
        return 0
    return 2 if first == second != third else None


def _infer_token_layout(
    token_counts: _TokenCounts, shape: tuple[int, ...], larger_shape: tuple[int, ...] | None
) -> AxisLayout:
    """Infer the axes of (tokens, channels), or of (channels, tokens) as within an MLP-Mixer."""
    grown_axes = (0, 1) if larger_shape is None else tuple(axis for axis in (0, 1) if shape[axis] != larger_shape[axis])
    if larger_shape is not None and len(grown_axes) == 2:
        return AxisLayout()
    sizes = {axis: (shape[axis], None if larger_shape is None else larger_shape[axis]) for axis in grown_axes}
    candidates = [
        (axis, num_prefix_tokens)
        for axis in grown_axes
        for num_prefix_tokens in token_counts.list_prefix_counts(*sizes[axis])
    ]
    if not candidates and shape.count(1) == 1:  # the class token alone
        candidates = [(shape.index(1), 0)]
    return AxisLayout(1 - candidates[0][0], candidates[0][1]) if len(candidates) == 1 else AxisLayout()


class _TokenCounts:
    """The possible numbers of tokens in a network: a square grid of patches, and prefix tokens."""

    def __init__(self, model: nn.Module) -> None:
        patch_counts = {getattr(module, "num_patches", None) for module in model.modules()} - {None}
        self.num_patches = patch_counts.pop() if len(patch_counts) == 1 else None
        self.num_prefix_tokens = count_prefix_tokens(model)

    def list_prefix_counts(self, num_tokens: int, num_larger: int | None = None) -> list[int]:
        """Return the possible numbers of prefix tokens among `num_tokens`.

        `num_larger` is the number of tokens for an image of twice the size, None for a network of fixed image size.
        """
        if num_larger is None:
            return [
                num_prefix_tokens
                for num_prefix_tokens in sorted({0, self.num_prefix_tokens})
                if self._is_grid(num_tokens - num_prefix_tokens)
            ]
        if not self.num_prefix_tokens:
            return [0]
        return [
            num_prefix_tokens
            for num_prefix_tokens in (0, self.num_prefix_tokens)
            if _is_square(num_tokens - num_prefix_tokens) and _is_square(num_larger - num_prefix_tokens)
        ]

    def _is_grid(self, num_tokens: int) -> bool:
        return num_tokens == self.num_patches if isinstance(self.num_patches, int) else _is_square(num_tokens)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def count_prefix_tokens(model: nn.Module) -> int:
    """Return the number of class and register tokens, which come before those of the image."""
    if isinstance(model, VisionTransformer):
        return 1
    num_prefix_tokens = getattr(model, "num_prefix_tokens", None)
    if isinstance(num_prefix_tokens, int):
        return num_prefix_tokens
    token = getattr(model, "cls_token", None)
    return token.shape[1] if isinstance(token, Tensor) and token.ndim == 3 else 0


def has_class_token(model: nn.Module) -> bool:
    """Return whether the network is a transformer whose first token is the class token."""
    return isinstance(model, VisionTransformer) or isinstance(getattr(model, "cls_token", None), Tensor)


LayerKind = Literal["input", "module", "node"]


@dataclass(frozen=True)
class LayerSpec:
    """A layer whose output is extracted.

    `name` is for display. `target` is the path of the head for the kind "input", the path of a module, or the name of a
    node in torchvision's feature extraction graph. `output_shape` is the shape for one image before pooling. `depth` is
    the fraction of the network's multiply-adds up to the layer: for a node, up to the last module before it that is
    called once; 1 for the input of the head.
    """

    name: str
    kind: LayerKind
    target: str
    output_shape: tuple[int, ...]
    depth: float
    axis_layout: AxisLayout = AxisLayout()  # immutable


def resolve_layers(
    model: nn.Module, head: str, names: Sequence[str], image_size: int, option: str = "--layer"
) -> tuple[LayerSpec, ...]:
    """Return the layers with these names, in order.

    A name is a module path, `input of <head>`, a node of the graph in eval mode, or a pattern of module paths in which
    * matches anything but a dot. Without names the input of the head is returned; for ("all",) the blocks of
    `list_blocks` and the input of the head. The network is unchanged.

    Raises RecipeError with every error: an unknown layer, one given twice, one whose output is not a tensor with the
    batch first. Raises UnsupportedImageSizeError for images of an unsupported size.
    """
    resolver = _LayerResolver(to_meta(model), head, image_size)
    if tuple(names) in ((), ("all",)):
        blocks = list_blocks(resolver.meta_model, resolver.trace, head) if names else ()
        usable = [name for name in blocks if _find_error(resolver.get_values("module", name)) is None]
        return (*(resolver.build_spec("module", name) for name in usable), resolver.build_spec("input", head))
    resolved: list[tuple[str, LayerKind, str]] = []
    errors: list[str] = []
    for name in names:
        if name == "all" and not resolver.find(name):
            errors.append(f"{option} all: cannot be combined with other layers; give it alone")
            continue
        matches = resolver.find(name)
        resolved += [(name, *match) for match in matches]
        if not matches:
            errors.append(f"{option} {name}: {resolver.describe_unknown(name)}")
    resolver.compute_nodes([target for _, kind, target in resolved if kind == "node"])
    targets = [(kind, target) for _, kind, target in resolved]
    for index, (name, kind, target) in enumerate(resolved):
        if (kind, target) in targets[:index]:
            errors.append(f"{option} {name}: {_format_name(kind, target)} is given twice; give it once")
        elif error := _find_error(resolver.get_values(kind, target)):
            errors.append(f"{option} {_format_name(kind, target)}: its output is {error}")
    if errors:
        raise RecipeError(*errors)
    return tuple(resolver.build_spec(*match) for match in targets)


@dataclass(frozen=True)
class _TwoShapes:
    """A value for a batch of 2 images, and for a batch of 3, of twice the size if `is_enlarged`."""

    batch_of_two: Any
    batch_of_three: Any
    is_enlarged: bool


class _LayerResolver:
    """Forward passes of two small batches on the meta device, to look names and shapes up."""

    def __init__(self, meta_model: nn.Module, head: str, image_size: int) -> None:
        self.meta_model, self.head, self.image_size = meta_model, head, image_size
        try:
            self.trace = trace_calls(meta_model, 2, image_size)
        except FORWARD_ERRORS:
            summarize(meta_model, image_size)  # raises UnsupportedImageSizeError
            raise
        self.enlarged_model, self.enlarged_trace, self.enlarged_size = self._trace_enlarged()
        self.is_enlarged = self.enlarged_size != image_size
        self.node_values: dict[str, _TwoShapes] = {}

    def _trace_enlarged(self) -> tuple[nn.Module, CallTrace, int]:
        """Return the network, its trace and the image size for images of twice the size, if it takes them."""
        enlarged_size = 2 * self.image_size
        enlarged = resize_model_input(self.meta_model, enlarged_size)
        try:
            return enlarged, trace_calls(enlarged, 3, enlarged_size), enlarged_size
        except FORWARD_ERRORS:
            return self.meta_model, trace_calls(self.meta_model, 3, self.image_size), self.image_size

    @cached_property
    def summary(self) -> ModelSummary:
        return summarize(self.meta_model, self.image_size)

    @cached_property
    def node_names(self) -> tuple[str, ...] | None:
        return list_graph_nodes(self.meta_model)

    def find(self, name: str) -> list[tuple[LayerKind, str]]:
        if name in self.trace.outputs and name:
            return [("module", name)]
        if name == _format_name("input", self.head):
            return [("input", self.head)]
        if "*" in name:
            pattern_parts = name.split(".")
            in_exit_order = sorted(self.trace.outputs, key=lambda each: self.summary.exit_order[each])
            return [
                ("module", each) for each in in_exit_order if each and _matches_pattern(each.split("."), pattern_parts)
            ]
        return [("node", name)] if name in (self.node_names or ()) else []

    def describe_unknown(self, name: str) -> str:
        modules = [each for each in self.trace.outputs if each]
        if "*" in name:
            return f"matches no module that the forward pass calls; {suggest(name, modules)}"
        if self.node_names is None:
            return (
                "the forward pass calls no module of this name, and the network has no graph nodes, since its code "
                f"cannot be traced; {suggest(name, modules)}"
            )
        known = suggest(name, [*modules, *self.node_names])
        return f"the forward pass has no module or graph node of this name; {known}"

    def compute_nodes(self, nodes: Sequence[str]) -> None:
        """Compute the values of nodes, for `get_values`."""
        if nodes:
            small, large = (
                _run_nodes(model, nodes, num_images, image_size)
                for model, num_images, image_size in (
                    (self.meta_model, 2, self.image_size),
                    (self.enlarged_model, 3, self.enlarged_size),
                )
            )
            self.node_values = {node: _TwoShapes(small[node], large[node], self.is_enlarged) for node in nodes}

    def get_values(self, kind: LayerKind, target: str) -> _TwoShapes:
        if kind == "node":
            return self.node_values[target]
        values = [each.inputs if kind == "input" else each.outputs for each in (self.trace, self.enlarged_trace)]
        return _TwoShapes(values[0][target], values[1][target], self.is_enlarged)

    def build_spec(self, kind: LayerKind, target: str) -> LayerSpec:
        pair = self.get_values(kind, target)
        shape = tuple(pair.batch_of_two.shape[1:])
        axis_layout = infer_axis_layout(
            self.meta_model, shape, tuple(pair.batch_of_three.shape[1:]) if pair.is_enlarged else None
        )
        return LayerSpec(
            _format_name(kind, target), kind, target, shape, self._compute_depth(kind, target), axis_layout
        )

    def _compute_depth(self, kind: LayerKind, target: str) -> float:
        if kind == "input":
            return 1.0
        module = target if kind == "module" else self._find_preceding_module(target)
        exit_order = self.summary.exit_order.get(module, 0) if module else 0
        macs_done = sum(macs for order, macs in self.summary.macs.items() if order <= exit_order)
        return macs_done / max(1, self.summary.multiply_adds)

    def _find_preceding_module(self, node: str) -> str:
        nodes = self.node_names or ()
        before = nodes[: nodes.index(node) + 1]
        called_once = [each for each in before if each in self.summary.exit_order and f"{each}_1" not in nodes]
        return called_once[-1] if called_once else ""


def _format_name(kind: LayerKind, target: str) -> str:
    return f"input of {target}" if kind == "input" else target


def _matches_pattern(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatch.fnmatchcase, name, pattern))


def _run_nodes(model: nn.Module, nodes: Sequence[str], num_images: int, image_size: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    with preserve_training_mode(model), torch.no_grad():
        run_node_graph(
            build_node_graph(model, nodes),
            torch.empty(num_images, 3, image_size, image_size, device="meta"),
            values.__setitem__,
        )
    return values


def _find_error(pair: _TwoShapes) -> str | None:
    """Return why an output cannot be extracted, with a remedy; None for a tensor with the batch first."""
    two, three = pair.batch_of_two, pair.batch_of_three
    if isinstance(two, (tuple, list, dict)):
        return f"a {type(two).__name__} of {len(two)}, not one tensor; choose a layer within it or after it"
    if not isinstance(two, Tensor) or not isinstance(three, Tensor):
        return f"of type {type(two).__name__}, not a tensor; choose a layer that gives a tensor"
    if tuple(two.shape[:1]) != (2,) or tuple(three.shape[:1]) != (3,) or two.ndim != three.ndim:
        return (
            f"of shape {list(two.shape)} for 2 images, and its first axis is not the batch; choose a layer around it "
            "or after it"
        )
    return None
