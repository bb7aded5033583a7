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

from ftcli.models.tracing import Trace, heeds_mode, keep_modes, measure, trace
from ftcli.models.trunk import Trunk, find_summit, measure_input
from ftcli.results import Crossing


@dataclass(frozen=True)
class Cut:
    """A network in two parts, which share its layers and tensors and follow the modes that its layers have.

    `crossing` are the values between them, tensors with the batch first. `prefix(images)` is a tuple of them, and
    `suffix(*values)` the network's output, bit for bit what the whole gives for the same batch shape and in the same
    grad mode. Code of the network that asks for its mode outside a layer is in `suffix` as it is in eval mode, and in
    `training_suffix` as it is in the stage's training. A suffix may write into the values that it is given. Where no
    parameter is frozen before anything live, the only crossing value is the image and `whole` is true. The image size
    is fixed.
    """

    crossing: tuple[Crossing, ...]
    prefix: nn.Module
    suffix: nn.Module
    training_suffix: nn.Module
    whole: bool


def find_cut(model: nn.Module, frozen: Collection[str], still: Collection[str], image_size: int) -> Cut | None:
    """Cut a network for a stage whose `frozen` parameters do not train and whose `still` modules are in eval mode.

    Works with real and with meta tensors and leaves the network as it was. Where its code cannot be traced because it
    branches on what it computes, it is cut at its head if that is all that trains and gives the network's output; None
    is returned where it cannot be cut so either.
    """
    with keep_modes(model):
        at_rest = trace(model.eval())
        model.train()
        for name in still:
            model.get_submodule(name).training = False
        at_work = trace(model)
        moving = {name for name, _ in model.named_parameters()} - set(frozen)
        moving |= {name for name, module in model.named_modules() if module.training and heeds_mode(module)}
    if at_rest is None or at_work is None:
        return _cut_at_head(model, moving, still, image_size)
    values = _classify(at_rest, image_size)
    crossing = set[str]()
    shared = set(at_rest.keys.values()) & set(at_work.keys.values())
    for graph in (at_rest, at_work):
        crossing |= _find_crossing(graph, _find_live(graph, moving, shared), values)
    whole = not any(_holds_parameters(node, model) for node in _climb(at_rest, crossing))
    if whole:
        crossing = {at_rest.keys[node] for node in at_rest.module.graph.nodes if node.op == "placeholder"}
    ordered = [key for key in at_rest.keys.values() if key in crossing]
    return Cut(
        _name_crossing(at_rest, ordered, values),
        _build_prefix(at_rest, ordered),
        _build_suffix(at_rest, ordered, values),
        _build_suffix(at_work, ordered, values),
        whole,
    )


def _cut_at_head(model: nn.Module, moving: set[str], still: Collection[str], image_size: int) -> Cut | None:
    """The cut before the module that holds all that moves, where it comes last and parameters come before it."""
    parameters = {name for name, _ in model.named_parameters()}
    head = find_summit({name.rpartition(".")[0] if name in parameters else name for name in moving})
    if not moving or not head or all(name.startswith(f"{head}.") for name in parameters):
        return None
    shape = measure_input(model, head, still, image_size)
    if shape is None:
        return None
    layer = model.get_submodule(head)
    return Cut((Crossing(f"{head}.input", shape),), Trunk(model, head), layer, layer, False)


@dataclass(frozen=True)
class _Value:
    """What a node comes to: a tensor with the batch first (`shape` without it), the number of images (`counts`), a
    number or numbers that the image size alone decides (`constant`), or anything else."""

    shape: tuple[int, ...] | None = None
    counts: bool = False
    constant: Any = None

    @property
    def number(self) -> bool:
        return self.counts or self.constant is not None


def _classify(graph: Trace, image_size: int) -> dict[str, _Value]:
    small, large = measure(graph, image_size, (2, 3))
    return {key: _compare(small.get(node), large.get(node)) for node, key in graph.keys.items()}


def _compare(two: Any, three: Any) -> _Value:
    if isinstance(two, torch.Tensor) and isinstance(three, torch.Tensor):
        batched = tuple(two.shape[:1]) == (2,) and tuple(three.shape[:1]) == (3,) and two.shape[1:] == three.shape[1:]
        return _Value(shape=tuple(two.shape[1:])) if batched else _Value()
    if type(two) is int and type(three) is int:
        return _Value(counts=(two, three) == (2, 3), constant=two if two == three else None)
    return _Value(constant=two) if _holds_numbers(two) and _holds_numbers(three) and two == three else _Value()


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(part) is int or _holds_numbers(part) for part in value)


def _find_live(graph: Trace, moving: Collection[str], shared: Collection[str]) -> set[fx.Node]:
    """The nodes at or below anything that moves. An expression that eval and train mode do not share depends on it."""
    touched = {name[:end] for name in moving for end in _ends(name)}
    live: set[fx.Node] = set()
    for node, key in graph.keys.items():
        own = node.op in ("call_module", "get_attr") and node.target in touched
        if own or key not in shared or any(value in live for value in node.all_input_nodes):
            live.add(node)
    return live


def _ends(name: str) -> Iterable[int]:
    return [index for index, sign in enumerate(name) if sign == "."] + [len(name)]


def _find_crossing(graph: Trace, live: Collection[fx.Node], values: dict[str, _Value]) -> set[str]:
    """The frozen values that live nodes read. One that is no tensor with the batch first, such as Swin's position
    biases, is computed in the suffix from what it reads itself; a number needs nothing."""
    crossing: set[str] = set()
    suffix = {node for node in graph.keys if node.op == "output"}
    for node in reversed(list(graph.keys)):
        for value in node.all_input_nodes if node in suffix else ():
            key = graph.keys[value]
            kind = values.get(key, _Value())
            if kind.shape is not None and value not in live:
                crossing.add(key)
            elif not kind.number:
                suffix.add(value)
    return crossing


def _climb(graph: Trace, keys: Collection[str]) -> list[fx.Node]:
    """The nodes that the named values are computed from, themselves included, in order."""
    above: set[fx.Node] = set()
    for node in reversed(list(graph.keys)):
        if graph.keys[node] in keys or any(reader in above for reader in node.users):
            above.add(node)
    return [node for node in graph.keys if node in above]


def _holds_parameters(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return next(model.get_submodule(str(node.target)).parameters(), None) is not None
    return node.op == "get_attr" and node.target in dict(model.named_parameters())


def _name_crossing(graph: Trace, keys: Iterable[str], values: dict[str, _Value]) -> tuple[Crossing, ...]:
    nodes = {key: node for node, key in graph.keys.items()}
    names = []
    for key in keys:
        node = nodes[key]
        modules = list(node.meta.get("nn_module_stack", {}))
        within = modules[-1] if modules else ""
        names.append(within if node.op == "call_module" else f"{within}.{node.name}".lstrip("."))
    return tuple(Crossing(name, values[key].shape or ()) for name, key in zip(names, keys, strict=True))


def _build_prefix(graph: Trace, keys: list[str]) -> fx.GraphModule:
    above = _climb(graph, keys)
    prefix = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.keys:
        if node in above or node.op == "placeholder":
            copies[node] = prefix.node_copy(node, copies.__getitem__)
    nodes = {key: node for node, key in graph.keys.items()}
    prefix.output(tuple(copies[nodes[key]] for key in keys))
    return fx.GraphModule(graph.module, prefix, "Prefix")


def _build_suffix(graph: Trace, keys: list[str], values: dict[str, _Value]) -> fx.GraphModule:
    suffix = fx.Graph()
    nodes = {key: node for node, key in graph.keys.items()}
    copies: dict[fx.Node, Any] = {nodes[key]: suffix.placeholder(nodes[key].name) for key in keys}
    images = suffix.call_method("size", (copies[nodes[keys[0]]], 0))
    needed = {node for node in graph.keys if node.op == "output"}
    for node in reversed(list(graph.keys)):
        if node in needed and node not in copies:
            kind = values.get(graph.keys[node], _Value())
            if kind.number:
                copies[node] = images if kind.counts else kind.constant
            else:
                needed.update(node.all_input_nodes)
    for node in graph.keys:
        if node in needed and node not in copies:
            copies[node] = suffix.node_copy(node, copies.__getitem__)
    if not images.users:
        suffix.erase_node(images)
    return fx.GraphModule(graph.module, suffix, "Suffix")
