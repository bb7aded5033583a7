"""The module calls of a forward pass, the chain of blocks among them, and graphs of named nodes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ftcli.models.fx_trace import TRACING_ERRORS, preserve_training_mode
from ftcli.models.hooks import forward_hooks
from ftcli.models.summary import FORWARD_ERRORS

MAX_BLOCKS = 36
"""The longest chain of blocks: a deeper network is listed by its stages."""

_MAX_DEPTH = 8
_ABSORBED_MODULES = {
    f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization", "pooling", "dropout")
}

TensorVersion = tuple[int, int] | None
"""A tensor's id and its count of in-place writes; None for any other value."""


@dataclass
class ModuleCall:
    """One call of a module, with the calls of its submodules in order."""

    name: str
    input_version: TensorVersion
    output_version: TensorVersion = None
    children: list[ModuleCall] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class CallTrace:
    """The calls of a forward pass, and the first input and the output of each module's last call."""

    root: ModuleCall
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def trace_calls(model: nn.Module, num_images: int, image_size: int) -> CallTrace:
    """Run a network on the meta device in eval mode. Raises one of FORWARD_ERRORS for an unsupported image size."""
    recorder = _CallRecorder()
    names = [name for name, _ in model.named_modules()]
    with (
        forward_hooks(model, names, recorder.enter, recorder.leave),
        preserve_training_mode(model),
        torch.no_grad(),
    ):
        model.eval()(torch.empty(num_images, 3, image_size, image_size, device="meta"))
    return CallTrace(recorder.stack[0].children[0], recorder.inputs, recorder.outputs)


def resize_model_input(model: nn.Module, image_size: int) -> nn.Module:
    """Return a copy of a network on the meta device that takes images of `image_size`, if its library can resize it.

    Otherwise return a plain copy, which may take images of any size.
    """
    resized = copy.deepcopy(model)
    if isinstance(resized, VisionTransformer):
        num_tokens = (image_size // resized.patch_size) ** 2 + 1
        resized.image_size = image_size
        resized.encoder.pos_embedding = nn.Parameter(torch.empty(1, num_tokens, resized.hidden_dim, device="meta"))
    elif callable(resize := getattr(resized, "set_input_size", None)):  # timm
        try:
            resize(img_size=image_size)
        except FORWARD_ERRORS:
            return copy.deepcopy(model)
    return resized


def list_blocks(model: nn.Module, trace: CallTrace, head: str) -> tuple[str, ...]:
    """Return the chain of blocks from the first to the last before the head, at most 36 if the network allows it.

    A container is divided into its children if they form a chain: each reads the output of the one before, and nothing
    bypasses them. So the network, its stages and sequences of layers are divided, a residual or Inception block is not.
    All modules of a class (except nn.Sequential) are divided alike; a container of single layers is divided only if it
    is an nn.Sequential. A block has weights; the normalization, activation, pooling and dropout directly after it
    belong to it, and it has the name of the last of them. The block whose output is the head's input is omitted. In a
    network with more blocks, such as ResNet-152, containers are listed instead of their children.
    """
    finder = _BlockFinder(model, trace, head)
    for depth in range(_MAX_DEPTH, -1, -1):
        blocks = finder.expand(trace.root, depth)
        if len(blocks) <= MAX_BLOCKS:
            break
    return tuple(
        dict.fromkeys(
            block.name
            for block in blocks
            if block.output_version is None or block.output_version != finder.head_input_version
        )
    )


class _CallRecorder:
    def __init__(self) -> None:
        self.stack = [ModuleCall("", None)]
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.keep_alive: list[Any] = []  # so that no id is used twice

    def enter(self, name: str, inputs: tuple[Any, ...]) -> None:
        first_input = inputs[0] if inputs else None
        self.keep_alive.append(first_input)
        self.inputs[name] = first_input
        call = ModuleCall(name, _get_version(first_input))
        self.stack[-1].children.append(call)
        self.stack.append(call)

    def leave(self, name: str, output: Any) -> None:
        self.keep_alive.append(output)
        self.outputs[name] = output
        self.stack.pop().output_version = _get_version(output)


def _get_version(value: Any) -> TensorVersion:
    return (id(value), value._version) if isinstance(value, Tensor) else None


class _BlockFinder:
    def __init__(self, model: nn.Module, trace: CallTrace, head: str) -> None:
        self.modules = dict(model.named_modules())
        self.head = head
        all_calls = _list_calls(trace.root)
        self.head_input_version = next((call.input_version for call in all_calls if call.name == head), None)
        self.call_counts = Counter(call.name for call in all_calls)
        self.non_chain_types = {type(self.modules[call.name]) for call in all_calls if not _is_chain(call)} - {
            nn.Sequential
        }

    def expand(self, call: ModuleCall, depth: int) -> list[ModuleCall]:
        """Return the blocks within a call, at most `depth` containers down. Parents of the head are always divided."""
        contains_head = self._contains_head(call.name)
        if not contains_head and (depth == 0 or not self._is_divisible(call)):
            return [call]
        blocks: list[ModuleCall] = []
        for index, child in enumerate(call.children):
            if self._is_candidate(child):
                parts = self.expand(child, depth - (call.name != ""))
                blocks += [self._absorb_following(call, index)] if parts == [child] else parts
        return blocks

    def _absorb_following(self, call: ModuleCall, index: int) -> ModuleCall:
        """Return the last of the calls that belong to the block that begins at `index`."""
        block = call.children[index]
        for next_call in call.children[index + 1 :]:
            if (
                next_call.input_version is None
                or next_call.input_version != block.output_version
                or not self._is_absorbed(next_call.name)
            ):
                break
            block = next_call
        return block

    def _is_absorbed(self, name: str) -> bool:
        module_type = type(self.modules[name])
        is_absorbable_type = (
            any(base.__module__ in _ABSORBED_MODULES for base in module_type.__mro__)
            and "Adaptive" not in module_type.__name__
        )
        return is_absorbable_type and self.call_counts[name] == 1 and not self._has_weights(name)

    def _is_divisible(self, call: ModuleCall) -> bool:
        module_type = type(self.modules[call.name])
        parts = [child for child in call.children if self._is_candidate(child)]
        if module_type in self.non_chain_types or not _is_chain(call) or not parts:
            return False
        if len(parts) == 1:
            return self._is_divisible(parts[0])
        return issubclass(module_type, nn.Sequential) or any(list(self.modules[part.name].children()) for part in parts)

    def _is_candidate(self, call: ModuleCall) -> bool:
        return not f"{call.name}.".startswith(f"{self.head}.") and self._has_weights(call.name)

    def _has_weights(self, name: str) -> bool:
        return any(parameter.ndim > 1 for parameter in self.modules[name].parameters())

    def _contains_head(self, name: str) -> bool:
        return not name or f"{self.head}.".startswith(f"{name}.")


def _list_calls(call: ModuleCall) -> list[ModuleCall]:
    return [call, *(nested for child in call.children for nested in _list_calls(child))]


def _is_chain(call: ModuleCall) -> bool:
    """Return whether each child reads the output of the one before and the last output is that of the container."""
    outputs = [child.output_version for child in call.children]
    next_inputs = [child.input_version for child in call.children[1:]] + [call.output_version]
    return None not in outputs and outputs == (next_inputs if outputs else [])


def list_graph_nodes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a network's nodes in eval mode, in order; None if its code cannot be traced."""
    with _restore_after_tracing(model):
        try:
            nodes: list[str] = get_graph_node_names(
                model, suppress_diff_warning=True, concrete_args=_get_default_args(model)
            )[1]
        except TRACING_ERRORS:
            return None
    return tuple(nodes)


def build_node_graph(model: nn.Module, nodes: Collection[str]) -> fx.GraphModule:
    """Return the graph of a network up to some nodes, in eval mode. Its layers are shared and set to eval mode too."""
    input_name = next(iter(inspect.signature(model.forward).parameters))
    with _restore_after_tracing(model):
        graph: fx.GraphModule = create_feature_extractor(
            model,
            train_return_nodes=[input_name],  # not used: the graph in train mode may lack the nodes
            eval_return_nodes=list(nodes),
            suppress_diff_warning=True,
            concrete_args=_get_default_args(model),
        )
    return graph.eval()


def run_node_graph(graph: fx.GraphModule, images: Tensor, on_value: Callable[[str, Any], None]) -> None:
    """Run a graph of `build_node_graph` and pass each node's name and value to `on_value`.

    The value must be used at once: nodes after it may change it in place.
    """
    _NodeInterpreter(graph, on_value).run(images)


class _NodeInterpreter(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, on_value: Callable[[str, Any], None]) -> None:
        super().__init__(graph)
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        named_outputs: Mapping[str, fx.Node] = output.args[0]
        self.node_names = {node: name for name, node in named_outputs.items()}
        self.on_value = on_value

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.node_names:
            self.on_value(self.node_names[n], value)
        return value


def _get_default_args(model: nn.Module) -> dict[str, Any] | None:
    """Return the defaults of forward's other arguments, which the tracer would replace by proxies."""
    parameters = inspect.signature(model.forward).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return defaults or None


@contextmanager
def _restore_after_tracing(model: nn.Module) -> Iterator[None]:
    """Restore train and eval modes, and remove the constants that the tracer adds to the network."""
    attributes = set(vars(model))
    try:
        with preserve_training_mode(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about train mode and the libraries' own code
            yield
    finally:
        for name in set(vars(model)) - attributes:
            delattr(model, name)
