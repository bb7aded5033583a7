"""Convolutions with the scaling that follows them folded into their weights: one pass over a map instead of three."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


def fuse_norms(network: fx.GraphModule) -> fx.GraphModule:
    """A graph that gives what this one gives in eval mode, but for rounding, with fewer passes over its maps.

    Each convolution whose output goes to a BatchNorm in eval mode alone, or is multiplied by and added to constants of
    its channels as a frozen BatchNorm does, is replaced by a copy with other weights, worked out in float64. All else
    is shared with the graph that was given, which stays as it was.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    fused = fx.GraphModule(network, graph, "FusedPrefix")
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for number, node in enumerate(list(graph.nodes)):
        if node.op == "call_module" and calls[node.target] == 1:
            layer = fused.get_submodule(str(node.target))
            if type(layer) is nn.Conv2d:  # a subclass may do more with its weights
                _fuse_after(fused, node, layer, f"fused_{number}", calls)
    graph.lint()
    fused.recompile()
    return fused


@dataclass(frozen=True)
class _Scaling:
    """What is done to each channel of a map, float64 (channels) on the CPU, since not every device has that format;
    `rest` is what follows within the same layer."""

    factor: Tensor
    shift: Tensor
    rest: nn.Module | None = None


def _fuse_after(fused: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, name: str, calls: Counter[Any]) -> None:
    """Fold what follows a convolution into a copy of it, for as long as that is a scaling."""
    factor = torch.ones(conv.out_channels, dtype=torch.float64)
    shift = torch.zeros_like(factor)
    rest: nn.Module | None = None
    while len(node.users) == 1 and rest is None:
        (reader,) = node.users
        scaling = _read_scaling(fused, reader, node, conv.out_channels, calls)
        if scaling is None:
            break
        factor, shift, rest = factor * scaling.factor, shift * scaling.factor + scaling.shift, scaling.rest
        reader.replace_all_uses_with(node)
        constants = [value for value in reader.all_input_nodes if value.op == "get_attr"]
        fused.graph.erase_node(reader)
        for constant in constants:
            if not constant.users:
                fused.graph.erase_node(constant)
    else:
        if rest is not None:
            fused.add_submodule(f"{name}_rest", rest)
            with fused.graph.inserting_after(node):
                after = fused.graph.call_module(f"{name}_rest")
            node.replace_all_uses_with(after)
            after.args = (node,)
    if not torch.equal(factor, torch.ones_like(factor)) or shift.any():
        fused.add_submodule(name, _scale(conv, factor, shift))
        node.target = name


def _read_scaling(
    fused: fx.GraphModule, reader: fx.Node, node: fx.Node, channels: int, calls: Counter[Any]
) -> _Scaling | None:
    if reader.op == "call_module" and calls[reader.target] == 1:
        return _read_norm(fused.get_submodule(str(reader.target)))
    if reader.op == "call_function" and reader.target in (operator.mul, operator.add) and len(reader.args) == 2:
        other = reader.args[1] if reader.args[0] is node else reader.args[0]
        if isinstance(other, fx.Node) and other.op == "get_attr":
            constant = _find_tensor(fused, str(other.target))
            if constant is not None and constant.shape in ((1, channels, 1, 1), (channels, 1, 1)):
                values = _take(constant).flatten()
                if reader.target is operator.mul:
                    return _Scaling(values, torch.zeros_like(values))
                return _Scaling(torch.ones_like(values), values)
    return None


def _find_tensor(fused: fx.GraphModule, path: str) -> Tensor | None:
    parent, _, name = path.rpartition(".")
    found = getattr(fused.get_submodule(parent), name)
    return found if isinstance(found, Tensor) else None


def _read_norm(layer: nn.Module) -> _Scaling | None:
    """The scaling of a BatchNorm in eval mode; timm's own drops and activates after it."""
    kind = type(layer)
    with_rest = kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")
    if not (kind is nn.BatchNorm2d or with_rest) or layer.training:
        return None
    assert isinstance(layer, nn.BatchNorm2d)
    if layer.running_mean is None or layer.running_var is None:
        return None  # it normalises by the batch
    factor = (_take(layer.running_var) + layer.eps).rsqrt()
    shift = -_take(layer.running_mean) * factor
    if layer.affine:
        factor, shift = factor * _take(layer.weight), shift * _take(layer.weight) + _take(layer.bias)
    rest = nn.Sequential(layer.get_submodule("drop"), layer.get_submodule("act")) if with_rest else None
    return _Scaling(factor, shift, rest)


def _scale(conv: nn.Conv2d, factor: Tensor, shift: Tensor) -> nn.Conv2d:
    """A copy of a convolution whose outputs are scaled; it keeps the number format."""
    scaled = copy.copy(conv)  # shallow: its tensors are replaced, not written into
    scaled._parameters = dict(conv._parameters)
    weight = _take(conv.weight) * factor.view(-1, 1, 1, 1)
    bias = shift if conv.bias is None else _take(conv.bias) * factor + shift
    own = weight.to(conv.weight).contiguous(memory_format=torch.channels_last)
    scaled.weight = nn.Parameter(own, requires_grad=False)
    scaled.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)
    return scaled


def _take(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
