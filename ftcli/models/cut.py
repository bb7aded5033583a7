"""Cut a network into a frozen prefix and a trainable suffix.

A value is frozen if no trainable parameter and no module in train mode is at or above it. The prefix computes the
frozen values that the suffix reads: the boundary tensors. A network whose code cannot be traced is cut at its head.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ftcli.models.fx_trace import (
    TRACING_ERRORS,
    Trace,
    depends_on_training_mode,
    preserve_training_mode,
    propagate_shapes,
    to_meta,
    trace_model,
)
from ftcli.models.state_dict import is_inside, list_self_and_ancestors
from ftcli.results import BoundaryTensorInfo


@dataclass(frozen=True)
class ModelCut:
    """A network in two parts that share its modules and tensors and follow the train or eval mode of its modules.

    `prefix(images)` returns the boundary tensors, batch first; `suffix(*tensors)` returns the network's output, bit for
    bit the same as the uncut network for the same batch shape and grad mode. Code of the network that reads its mode
    outside a module is traced in eval mode for `suffix` and in the stage's modes for `training_suffix`. A suffix may
    write into its inputs. Without frozen parameters before the first trainable one, `is_uncut` is true and the only
    boundary tensor is the image. The image size is fixed.
    """

    boundary: tuple[BoundaryTensorInfo, ...]
    prefix: nn.Module
    suffix: nn.Module
    training_suffix: nn.Module
    is_uncut: bool


def cut_model(
    model: nn.Module, frozen: Collection[str], eval_modules: Collection[str], image_size: int
) -> ModelCut | None:
    """Cut a network for a stage with these frozen parameters and these modules in eval mode.

    Works with real and with meta tensors and does not change the network. A network whose code branches on computed
    values cannot be traced: it is cut at its head if only the head trains and returns the network's output. Returns
    None if that is not possible either.
    """
    with preserve_training_mode(model):
        eval_trace = trace_model(model.eval())
        _set_train_mode(model, eval_modules)
        train_trace = trace_model(model)
        trainable = {name for name, _ in model.named_parameters()} - set(frozen)
        trainable |= {
            name for name, module in model.named_modules() if module.training and depends_on_training_mode(module)
        }
    if eval_trace is None or train_trace is None:
        return _cut_at_head(model, trainable, eval_modules, image_size)
    node_values = _infer_node_values(eval_trace, image_size)
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


def _set_train_mode(model: nn.Module, eval_modules: Collection[str]) -> None:
    model.train()
    for name in eval_modules:
        model.get_submodule(name).training = False


def _cut_at_head(
    model: nn.Module, trainable: set[str], eval_modules: Collection[str], image_size: int
) -> ModelCut | None:
    """Return the cut before the module that contains everything trainable, if it is the network's last module and is
    preceded by parameters."""
    parameters = {name for name, _ in model.named_parameters()}
    head = find_common_parent({name.rpartition(".")[0] if name in parameters else name for name in trainable})
    if not trainable or not head or all(is_inside(name, head) for name in parameters):
        return None
    shape = infer_input_shape(model, head, eval_modules, image_size)
    if shape is None:
        return None
    layer = model.get_submodule(head)
    return ModelCut((BoundaryTensorInfo(f"{head}.input", shape),), HeadlessModel(model, head), layer, layer, False)


@dataclass(frozen=True)
class _NodeValue:
    """The value of a graph node: a tensor with the batch first (`shape` omits it), the batch size, a constant (an int
    or nested ints that depend on the image size alone), or none of these."""

    shape: tuple[int, ...] | None = None
    is_batch_size: bool = False
    constant: Any = None

    @property
    def is_number(self) -> bool:
        return self.is_batch_size or self.constant is not None


def _infer_node_values(trace: Trace, image_size: int) -> dict[str, _NodeValue]:
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
    """Return the nodes at or below a trainable name. An expression of only one mode's trace depends on the mode."""
    trainable_paths = {path for name in trainable for path in list_self_and_ancestors(name)}
    trainable_nodes: set[fx.Node] = set()
    for node, key in trace.node_keys.items():
        is_trainable = node.op in ("call_module", "get_attr") and node.target in trainable_paths
        if is_trainable or key not in shared_keys or any(value in trainable_nodes for value in node.all_input_nodes):
            trainable_nodes.add(node)
    return trainable_nodes


def _find_boundary(trace: Trace, trainable_nodes: Collection[fx.Node], node_values: dict[str, _NodeValue]) -> set[str]:
    """Return the keys of the frozen values that the suffix reads.

    A frozen value that is not a tensor with the batch first, such as Swin's position biases, is recomputed in the
    suffix from its own inputs; a number is a constant there.
    """
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
    """Return the nodes of these keys and all nodes that they are computed from, in graph order."""
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
) -> tuple[BoundaryTensorInfo, ...]:
    nodes = {key: node for node, key in trace.node_keys.items()}
    names = []
    for key in keys:
        node = nodes[key]
        modules = list(node.meta.get("nn_module_stack", {}))
        module_path = modules[-1] if modules else ""
        names.append(module_path if node.op == "call_module" else f"{module_path}.{node.name}".lstrip("."))
    return tuple(BoundaryTensorInfo(name, node_values[key].shape or ()) for name, key in zip(names, keys, strict=True))


def _build_prefix(trace: Trace, keys: list[str]) -> fx.GraphModule:
    prefix_nodes = _list_ancestors(trace, keys)
    prefix = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.node_keys:
        if node in prefix_nodes or node.op == "placeholder":
            copies[node] = prefix.node_copy(node, copies.__getitem__)
    nodes = {key: node for node, key in trace.node_keys.items()}
    prefix.output(tuple(copies[nodes[key]] for key in keys))
    return fx.GraphModule(trace.module, prefix, "Prefix")


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


class HeadlessModel(nn.Module):
    """A network without its head: returns the head's input for images, as a tuple of one tensor.

    Shares all modules and tensors with the network except the head.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = _replace_with_stub(network, head.split("."))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        try:
            self.network(images)
        except _HeadReached as reached:
            return (reached.value,)
        raise RuntimeError("the network returned an output without calling its head")


class _HeadReached(BaseException):
    """Carries the head's input out of the forward pass. The network's code does not catch a BaseException."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class _HeadStub(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        raise _HeadReached(value)


def _replace_with_stub(module: nn.Module, path: list[str]) -> nn.Module:
    """Return a copy of a module with the descendant at a path replaced; only the modules along the path are copied."""
    clone = copy.copy(module)
    first, rest = path[0], path[1:]
    clone._modules = dict(module._modules)
    child = clone._modules[first]
    assert child is not None
    clone._modules[first] = _replace_with_stub(child, rest) if rest else _HeadStub()
    return clone


def find_common_parent(names: Collection[str]) -> str:
    """Return the path of the lowest module that is or contains each of these modules, "" for the network itself."""
    paths = [name.split(".") for name in names]
    shortest = min(map(len, paths), default=0)
    depth = 0
    while depth < shortest and len({path[depth] for path in paths}) == 1:
        depth += 1
    return ".".join(paths[0][:depth]) if paths else ""


@dataclass(frozen=True)
class _HeadCall:
    """The inputs of a head in one forward pass, and whether the network returned the head's output."""

    inputs: tuple[Any, ...]
    is_model_output: bool


def infer_input_shape(
    model: nn.Module, head: str, eval_modules: Collection[str], image_size: int
) -> tuple[int, ...] | None:
    """Return the shape of a head's input for one image; None unless the head is called once, with one tensor, and the
    network returns its output, both in eval mode and with all but `eval_modules` in train mode.

    Does not change the network. Runs on the meta device, or on a copy with real tensors if the code needs values.
    """
    for candidate in (to_meta(model), model):
        runnable = copy.deepcopy(candidate) if candidate is model else candidate
        try:
            with preserve_training_mode(runnable):
                head_calls = [_record_head_call(runnable.eval(), head, num_images, image_size) for num_images in (2, 3)]
                _set_train_mode(runnable, eval_modules)
                head_calls += [_record_head_call(runnable, head, num_images, image_size) for num_images in (2, 3)]
        except TRACING_ERRORS:
            continue
        return _find_common_input_shape(head_calls)
    return None


def _record_head_call(model: nn.Module, head: str, num_images: int, image_size: int) -> _HeadCall:
    inputs: list[tuple[Any, ...]] = []
    outputs: list[tuple[Any, int]] = []
    layer = model.get_submodule(head)

    def record_call(_: nn.Module, values: tuple[Any, ...], keyword_values: dict[str, Any], output: Any) -> None:
        inputs.append((*values, *keyword_values.values()))
        outputs.append((output, output._version if isinstance(output, Tensor) else 0))

    device = next(iter([*model.parameters(), *model.buffers()])).device
    with (
        layer.register_forward_hook(record_call, with_kwargs=True),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        output = model(torch.rand(num_images, 3, image_size, image_size, device=device))
    is_model_output = len(outputs) == 1 and output is outputs[0][0] and output._version == outputs[0][1]
    return _HeadCall(inputs[0] if is_model_output else (), is_model_output)


def _find_common_input_shape(head_calls: list[_HeadCall]) -> tuple[int, ...] | None:
    shapes = set()
    for head_call, num_images in zip(head_calls, (2, 3, 2, 3), strict=True):
        if not head_call.is_model_output or len(head_call.inputs) != 1 or not isinstance(head_call.inputs[0], Tensor):
            return None
        shape = tuple(head_call.inputs[0].shape)
        if shape[:1] != (num_images,) or not head_call.inputs[0].is_floating_point():
            return None
        shapes.add(shape[1:])
    return shapes.pop() if len(shapes) == 1 else None
