"""Convolutions fused with the BatchNorm that follows them, so that a frozen backbone computes faster."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
