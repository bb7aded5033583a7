"""The cut: where the part of a network that a stage leaves alone ends, and the part that it trains begins.

A value is frozen if nothing trainable, and no module whose train mode matters, is at or above it. The prefix computes
the frozen values; the suffix computes the others from those frozen values that it reads, which are said to cross.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ftcli.models.fx_trace import Trace, depends_on_training_mode, preserve_training_mode, propagate_shapes, trace_model
from ftcli.models.trunk import HeadlessModel, common_parent, infer_input_shape
from ftcli.results import BoundaryTensor


@dataclass(frozen=True)
class ModelCut:
    """A network in two parts, which share its layers and tensors and follow the modes that its layers have.

    `crossing` are the values between them, tensors with the batch first. `prefix(images)` is a tuple of them, and
    `suffix(*values)` the network's output, bit for bit what the whole gives for the same batch shape and in the same
    grad mode. Code of the network that asks for its mode outside a layer is in `suffix` as it is in eval mode, and in
    `training_suffix` as it is in the stage's training. A suffix may write into the values that it is given. Where no
    parameter is frozen before anything live, the only crossing value is the image and `whole` is true. The image size
    is fixed.
    """

    boundary: tuple[BoundaryTensor, ...]
    prefix: nn.Module
    suffix: nn.Module
    training_suffix: nn.Module
    is_uncut: bool


def cut_model(
    model: nn.Module, frozen: Collection[str], eval_modules: Collection[str], image_size: int
) -> ModelCut | None:
    """Cut a network for a stage whose `frozen` parameters do not train and whose `still` modules are in eval mode.

    Works with real and with meta tensors and leaves the network as it was. Where its code cannot be traced because it
    branches on what it computes, it is cut at its head if that is all that trains and gives the network's output; None
    is returned where it cannot be cut so either.
    """
    with preserve_training_mode(model):
        eval_trace = trace_model(model.eval())
        model.train()
        for name in eval_modules:
            model.get_submodule(name).training = False
        train_trace = trace_model(model)
        trainable = {name for name, _ in model.named_parameters()} - set(frozen)
        trainable |= {
            name for name, module in model.named_modules() if module.training and depends_on_training_mode(module)
        }
    if eval_trace is None or train_trace is None:
        return _cut_at_head(model, trainable, eval_modules, image_size)
    node_values = _classify_values(eval_trace, image_size)
    boundary = set[str]()
    shared_keys = set(eval_trace.node_keys.values()) & set(train_trace.node_keys.values())
    for mode_trace in (eval_trace, train_trace):
        boundary |= _find_boundary(mode_trace, _find_trainable_nodes(mode_trace, trainable, shared_keys), node_values)
    is_uncut = not any(_reads_parameters(node, model) for node in _list_ancestors(eval_trace, boundary))
    if is_uncut:
        boundary = {eval_trace.node_keys[node] for node in eval_trace.module.graph.nodes if node.op == "placeholder"}
    boundary_keys = [key for key in eval_trace.node_keys.values() if key in boundary]
    return ModelCut(
        _describe_boundary(eval_trace, boundary_keys, node_values),
        _build_prefix(eval_trace, boundary_keys),
        _build_suffix(eval_trace, boundary_keys, node_values),
        _build_suffix(train_trace, boundary_keys, node_values),
        is_uncut,
    )


def _cut_at_head(
    model: nn.Module, trainable: set[str], eval_modules: Collection[str], image_size: int
) -> ModelCut | None:
    """The cut before the module that holds all that moves, where it comes last and parameters come before it."""
    parameters = {name for name, _ in model.named_parameters()}
    head = common_parent({name.rpartition(".")[0] if name in parameters else name for name in trainable})
    if not trainable or not head or all(name.startswith(f"{head}.") for name in parameters):
        return None
    shape = infer_input_shape(model, head, eval_modules, image_size)
    if shape is None:
        return None
    layer = model.get_submodule(head)
    return ModelCut((BoundaryTensor(f"{head}.input", shape),), HeadlessModel(model, head), layer, layer, False)


@dataclass(frozen=True)
class _NodeValue:
    """What a node comes to: a tensor with the batch first (`shape` without it), the number of images (`counts`), a
    number or numbers that the image size alone decides (`constant`), or anything else."""

    shape: tuple[int, ...] | None = None
    is_batch_size: bool = False
    constant: Any = None

    @property
    def is_number(self) -> bool:
        return self.is_batch_size or self.constant is not None


def _classify_values(trace: Trace, image_size: int) -> dict[str, _NodeValue]:
    small, large = propagate_shapes(trace, image_size, (2, 3))
    return {key: _infer_node_value(small.get(node), large.get(node)) for node, key in trace.node_keys.items()}


def _infer_node_value(small: Any, large: Any) -> _NodeValue:
    if isinstance(small, torch.Tensor) and isinstance(large, torch.Tensor):
        is_batched = (
            tuple(small.shape[:1]) == (2,) and tuple(large.shape[:1]) == (3,) and small.shape[1:] == large.shape[1:]
        )
        return _NodeValue(shape=tuple(small.shape[1:])) if is_batched else _NodeValue()
    if type(small) is int and type(large) is int:
        return _NodeValue(is_batch_size=(small, large) == (2, 3), constant=small if small == large else None)
    return (
        _NodeValue(constant=small)
        if _is_int_sequence(small) and _is_int_sequence(large) and small == large
        else _NodeValue()
    )


def _is_int_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(item) is int or _is_int_sequence(item) for item in value)


def _find_trainable_nodes(trace: Trace, trainable: Collection[str], shared_keys: Collection[str]) -> set[fx.Node]:
    """The nodes at or below anything that moves. An expression that eval and train mode do not share depends on it."""
    trainable_paths = {name[:end] for name in trainable for end in _ancestor_ends(name)}
    trainable_nodes: set[fx.Node] = set()
    for node, key in trace.node_keys.items():
        is_trainable = node.op in ("call_module", "get_attr") and node.target in trainable_paths
        if is_trainable or key not in shared_keys or any(value in trainable_nodes for value in node.all_input_nodes):
            trainable_nodes.add(node)
    return trainable_nodes


def _ancestor_ends(name: str) -> Iterable[int]:
    return [index for index, char in enumerate(name) if char == "."] + [len(name)]


def _find_boundary(trace: Trace, trainable_nodes: Collection[fx.Node], node_values: dict[str, _NodeValue]) -> set[str]:
    """The frozen values that live nodes read. One that is no tensor with the batch first, such as Swin's position
    biases, is computed in the suffix from what it reads itself; a number needs nothing."""
    boundary: set[str] = set()
    suffix = {node for node in trace.node_keys if node.op == "output"}
    for node in reversed(list(trace.node_keys)):
        for value in node.all_input_nodes if node in suffix else ():
            key = trace.node_keys[value]
            node_value = node_values.get(key, _NodeValue())
            if node_value.shape is not None and value not in trainable_nodes:
                boundary.add(key)
            elif not node_value.is_number:
                suffix.add(value)
    return boundary


def _list_ancestors(trace: Trace, keys: Collection[str]) -> list[fx.Node]:
    """The nodes that the named values are computed from, themselves included, in order."""
    ancestors: set[fx.Node] = set()
    for node in reversed(list(trace.node_keys)):
        if trace.node_keys[node] in keys or any(reader in ancestors for reader in node.users):
            ancestors.add(node)
    return [node for node in trace.node_keys if node in ancestors]


def _reads_parameters(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return next(model.get_submodule(str(node.target)).parameters(), None) is not None
    return node.op == "get_attr" and node.target in dict(model.named_parameters())


def _describe_boundary(
    trace: Trace, keys: Iterable[str], node_values: dict[str, _NodeValue]
) -> tuple[BoundaryTensor, ...]:
    nodes = {key: node for node, key in trace.node_keys.items()}
    names = []
    for key in keys:
        node = nodes[key]
        modules = list(node.meta.get("nn_module_stack", {}))
        module_path = modules[-1] if modules else ""
        names.append(module_path if node.op == "call_module" else f"{module_path}.{node.name}".lstrip("."))
    return tuple(BoundaryTensor(name, node_values[key].shape or ()) for name, key in zip(names, keys, strict=True))


def _build_prefix(trace: Trace, keys: list[str]) -> fx.GraphModule:
    prefix_nodes = _list_ancestors(trace, keys)
    prefix = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.node_keys:
        if node in prefix_nodes or node.op == "placeholder":
            copies[node] = prefix.node_copy(node, copies.__getitem__)
    nodes = {key: node for node, key in trace.node_keys.items()}
    prefix.output(tuple(copies[nodes[key]] for key in keys))
    return fx.GraphModule(trace.module, prefix, "FrozenBackbone")


def _build_suffix(trace: Trace, keys: list[str], node_values: dict[str, _NodeValue]) -> fx.GraphModule:
    suffix = fx.Graph()
    nodes = {key: node for node, key in trace.node_keys.items()}
    copies: dict[fx.Node, Any] = {nodes[key]: suffix.placeholder(nodes[key].name) for key in keys}
    batch_size = suffix.call_method("size", (copies[nodes[keys[0]]], 0))
    needed = {node for node in trace.node_keys if node.op == "output"}
    for node in reversed(list(trace.node_keys)):
        if node in needed and node not in copies:
            node_value = node_values.get(trace.node_keys[node], _NodeValue())
            if node_value.is_number:
                copies[node] = batch_size if node_value.is_batch_size else node_value.constant
            else:
                needed.update(node.all_input_nodes)
    for node in trace.node_keys:
        if node in needed and node not in copies:
            copies[node] = suffix.node_copy(node, copies.__getitem__)
    if not batch_size.users:
        suffix.erase_node(batch_size)
    return fx.GraphModule(trace.module, suffix, "Suffix")
