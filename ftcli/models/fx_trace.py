"""Trace a network with torch.fx and propagate shapes on the meta device."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn


def to_meta(model: nn.Module) -> nn.Module:
    """Return the network with every tensor on the meta device: itself if it already is, else a copy."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.is_meta for tensor in tensors):
        return model
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo)


@contextmanager
def preserve_training_mode(model: nn.Module) -> Iterator[None]:
    """Restore the train or eval mode of every module when the context ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def depends_on_training_mode(module: nn.Module) -> bool:
    """Return whether the module's output may depend on train or eval mode: whether the code of its class reads
    `self.training`. A dropout with p = 0 does not depend on it."""
    return _reads_training(type(module)) and getattr(module, "p", None) != 0


def _reads_training(module_type: type[nn.Module]) -> bool:
    torch_bases = set(nn.Module.__mro__)
    members = (member for base in module_type.__mro__ if base not in torch_bases for member in vars(base).values())
    return any("training" in member.__code__.co_names for member in members if inspect.isfunction(member))


TRACING_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError, NameError)
"""The errors that a network's code raises when an input is an fx proxy or a meta tensor."""


class _Tracer(fx.Tracer):
    """Traces into every module except torch.nn's, those that read their mode and have no submodule with parameters,
    and those whose code branches on computed values.

    These stay module calls, so that the graph runs their own code in their current mode. Arguments of the network's
    forward other than the images have their defaults.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaf_paths: set[str] = set()

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *more_args: Any,
        **more_kwargs: Any,
    ) -> Any:
        if kind == "placeholder" and args:
            return args[0]
        return super().create_proxy(kind, target, args, kwargs, *more_args, **more_kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaf_paths or super().is_leaf_module(m, module_qualified_name):
            return True
        has_inner_parameters = any(list(child.parameters()) for child in m.children())
        return not has_inner_parameters and _reads_training(type(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        def traced_forward(*inputs: Any, **keyword_inputs: Any) -> Any:
            last_node, depth = next(reversed(self.graph.nodes)), len(self.module_stack)
            try:
                return forward(*inputs, **keyword_inputs)
            except TRACING_ERRORS:
                self._erase_after(last_node, depth)
                path = self.path_of_module(m)
                self.leaf_paths.add(path)
                return self.create_proxy("call_module", path, inputs, keyword_inputs)

        return super().call_module(m, traced_forward, args, kwargs)

    def _erase_after(self, last_node: fx.Node, depth: int) -> None:
        """Erase the nodes after a node, except reads of tensors, which other modules may share."""
        for node in reversed(self.graph.nodes):
            if node is last_node:
                break
            if node.op != "get_attr":
                self.graph.erase_node(node)
        while len(self.module_stack) > depth:
            self.module_stack.popitem()


@dataclass(frozen=True)
class Trace:
    """A network as a graph. `node_keys` hashes the expression of each node: two traces of a network share a key where
    they compute the value from the image in the same way."""

    module: fx.GraphModule
    node_keys: dict[fx.Node, str]


def trace_model(model: nn.Module) -> Trace | None:
    """Return the graph of a network in the current modes of its modules; None if its code branches on computed values.

    The graph module shares parameters, buffers and modules with the network, which does not change.
    """
    attributes = set(vars(model))
    try:
        graph = _Tracer().trace(model)
        module = fx.GraphModule(model, graph)
    except TRACING_ERRORS:
        return None
    finally:
        for name in set(vars(model)) - attributes:  # the tracer stores constants on the network
            delattr(model, name)
    return Trace(module, _hash_expressions(graph))


def _hash_expressions(graph: fx.Graph) -> dict[fx.Node, str]:
    node_keys: dict[fx.Node, str] = {}
    occurrences: Counter[str] = Counter()
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else f"{node.target.__module__}.{node.target.__name__}"
        arguments = fx.map_arg((node.args, node.kwargs), lambda inner: node_keys[inner])
        expression = f"{node.op} {target} {arguments!r}"
        occurrences[expression] += 1  # after an in-place operation, an equal expression is another value
        node_keys[node] = hashlib.blake2b(
            f"{expression} {occurrences[expression]}".encode(), digest_size=16
        ).hexdigest()
    return node_keys


def propagate_shapes(trace: Trace, image_size: int, batch_sizes: Iterable[int]) -> list[dict[fx.Node, Any]]:
    """Return the value of each node for batches of square images, one dict for each batch size; tensors are on the
    meta device."""
    propagator = _ShapePropagator(to_meta(trace.module), garbage_collect_values=False, graph=trace.module.graph)
    return [
        propagator.propagate(torch.empty(batch_size, 3, image_size, image_size, device="meta"))
        for batch_size in batch_sizes
    ]


_SHAPE_PRESERVING = (
    nn.modules.batchnorm._BatchNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
)
"""Layers whose output has the shape of their input. Skipping their meta kernels, which are slow Python, saves most of
the time."""


class _ShapePropagator(fx.Interpreter):
    def propagate(self, images: torch.Tensor) -> dict[fx.Node, Any]:
        with torch.no_grad():
            self.run(images)
        return dict(self.env)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(self.fetch_attr(target), _SHAPE_PRESERVING):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)
