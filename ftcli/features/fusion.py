"""Convolutions with the scaling that follows them folded into their weights: one pass over a map instead of three."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


def fuse_conv_bn(network: fx.GraphModule) -> fx.GraphModule:
    """A graph that gives what this one gives in eval mode, but for rounding, with fewer passes over its maps.

    Each convolution whose output goes to a BatchNorm in eval mode alone, or is multiplied by and added to constants of
    its channels as a frozen BatchNorm does, is replaced by a copy with other weights, worked out in float64. All else
    is shared with the graph that was given, which stays as it was.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    fused = fx.GraphModule(network, graph, "FusedPrefix")
    call_counts = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for index, node in enumerate(list(graph.nodes)):
        if node.op == "call_module" and call_counts[node.target] == 1:
            layer = fused.get_submodule(str(node.target))
            if type(layer) is nn.Conv2d:  # a subclass may do more with its weights
                _fuse_following(fused, node, layer, f"fused_{index}", call_counts)
    graph.lint()
    fused.recompile()
    return fused


@dataclass(frozen=True)
class _ChannelAffine:
    """What is done to each channel of a map, float64 (channels) on the CPU, since not every device has that format;
    `rest` is what follows within the same layer."""

    scale: Tensor
    shift: Tensor
    activation: nn.Module | None = None


def _fuse_following(
    fused: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, name: str, call_counts: Counter[Any]
) -> None:
    """Fold what follows a convolution into a copy of it, for as long as that is a scaling."""
    scale = torch.ones(conv.out_channels, dtype=torch.float64)
    shift = torch.zeros_like(scale)
    activation: nn.Module | None = None
    while len(node.users) == 1 and activation is None:
        (user,) = node.users
        affine = _match_channel_affine(fused, user, node, conv.out_channels, call_counts)
        if affine is None:
            break
        scale, shift, activation = scale * affine.scale, shift * affine.scale + affine.shift, affine.activation
        user.replace_all_uses_with(node)
        constants = [value for value in user.all_input_nodes if value.op == "get_attr"]
        fused.graph.erase_node(user)
        for constant in constants:
            if not constant.users:
                fused.graph.erase_node(constant)
    else:
        if activation is not None:
            fused.add_submodule(f"{name}_eval_mode", activation)
            with fused.graph.inserting_after(node):
                activation_node = fused.graph.call_module(f"{name}_eval_mode")
            node.replace_all_uses_with(activation_node)
            activation_node.args = (node,)
    if not torch.equal(scale, torch.ones_like(scale)) or shift.any():
        fused.add_submodule(name, _scale_conv(conv, scale, shift))
        node.target = name


def _match_channel_affine(
    fused: fx.GraphModule, user: fx.Node, node: fx.Node, channels: int, call_counts: Counter[Any]
) -> _ChannelAffine | None:
    if user.op == "call_module" and call_counts[user.target] == 1:
        return _convert_batch_norm(fused.get_submodule(str(user.target)))
    if user.op == "call_function" and user.target in (operator.mul, operator.add) and len(user.args) == 2:
        other = user.args[1] if user.args[0] is node else user.args[0]
        if isinstance(other, fx.Node) and other.op == "get_attr":
            constant = _get_tensor(fused, str(other.target))
            if constant is not None and constant.shape in ((1, channels, 1, 1), (channels, 1, 1)):
                values = _to_float64(constant).flatten()
                if user.target is operator.mul:
                    return _ChannelAffine(values, torch.zeros_like(values))
                return _ChannelAffine(torch.ones_like(values), values)
    return None


def _get_tensor(fused: fx.GraphModule, path: str) -> Tensor | None:
    parent, _, name = path.rpartition(".")
    value = getattr(fused.get_submodule(parent), name)
    return value if isinstance(value, Tensor) else None


def _convert_batch_norm(layer: nn.Module) -> _ChannelAffine | None:
    """The scaling of a BatchNorm in eval mode; timm's own drops and activates after it."""
    norm_type = type(layer)
    has_activation = norm_type.__name__ == "BatchNormAct2d" and norm_type.__module__.startswith("timm.")
    if not (norm_type is nn.BatchNorm2d or has_activation) or layer.training:
        return None
    assert isinstance(layer, nn.BatchNorm2d)
    if layer.running_mean is None or layer.running_var is None:
        return None  # it normalises by the batch
    scale = (_to_float64(layer.running_var) + layer.eps).rsqrt()
    shift = -_to_float64(layer.running_mean) * scale
    if layer.affine:
        scale, shift = scale * _to_float64(layer.weight), shift * _to_float64(layer.weight) + _to_float64(layer.bias)
    activation = nn.Sequential(layer.get_submodule("drop"), layer.get_submodule("act")) if has_activation else None
    return _ChannelAffine(scale, shift, activation)


def _scale_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """A copy of a convolution whose outputs are scaled; it keeps the number format."""
    scaled = copy.copy(conv)  # shallow: its tensors are replaced, not written into
    scaled._parameters = dict(conv._parameters)
    weight = _to_float64(conv.weight) * scale.view(-1, 1, 1, 1)
    bias = shift if conv.bias is None else _to_float64(conv.bias) * scale + shift
    fused_weight = weight.to(conv.weight).contiguous(memory_format=torch.channels_last)
    scaled.weight = nn.Parameter(fused_weight, requires_grad=False)
    scaled.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)
    return scaled


def _to_float64(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
