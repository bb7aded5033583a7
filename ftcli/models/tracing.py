"""A network without its weights, and the graph of values that an image passes through."""

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


def sketch(model: nn.Module) -> nn.Module:
    """The network with every tensor on the meta device: itself if it is so already, else a copy that shares nothing
    with it and takes no memory for tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.is_meta for tensor in tensors):
        return model
    twins: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        twins[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, twins)


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Give every module back the mode it had, train or eval, when the context ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def heeds_mode(module: nn.Module) -> bool:
    """Whether what the module computes may depend on its being in train or eval mode.

    Told from the code of its class, which then reads `self.training`; a dropout of share 0 is the same in both.
    """
    return _reads_training(type(module)) and getattr(module, "p", None) != 0


def _reads_training(kind: type[nn.Module]) -> bool:
    above = set(nn.Module.__mro__)
    members = (member for base in kind.__mro__ if base not in above for member in vars(base).values())
    return any("training" in member.__code__.co_names for member in members if inspect.isfunction(member))


UNTRACEABLE = (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError, NameError)
"""What a network's own code raises when a placeholder takes the place of its tensor."""


class _Tracer(fx.Tracer):
    """Looks into every module but those of torch.nn, those without inner layers whose mode matters, and those whose
    code branches on what it computes: these stay calls, so that a graph follows their mode and their code when it
    runs. What the network's forward takes beside the images has its default."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: set[str] = set()

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **named: Any,
    ) -> Any:
        if kind == "placeholder" and args:
            return args[0]
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.closed or super().is_leaf_module(m, module_qualified_name):
            return True
        inner = any(list(child.parameters()) for child in m.children())
        return not inner and _reads_training(type(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        def look_into(*inputs: Any, **named: Any) -> Any:
            last, depth = next(reversed(self.graph.nodes)), len(self.module_stack)
            try:
                return forward(*inputs, **named)
            except UNTRACEABLE:
                self._forget(last, depth)
                path = self.path_of_module(m)
                self.closed.add(path)
                return self.create_proxy("call_module", path, inputs, named)

        return super().call_module(m, look_into, args, kwargs)

    def _forget(self, last: fx.Node, depth: int) -> None:
        """Take back what was traced after a node, but for tensors that were read: other modules may share them."""
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            if node.op != "get_attr":
                self.graph.erase_node(node)
        while len(self.module_stack) > depth:
            self.module_stack.popitem()


@dataclass(frozen=True)
class Trace:
    """A network as a graph. `keys` names the expression of each node: equal in two traces of a network where the
    value is computed in the same way from the image."""

    module: fx.GraphModule
    keys: dict[fx.Node, str]


def trace(model: nn.Module) -> Trace | None:
    """The graph of a network in the modes that its modules have; None if its own code branches on what it computes.

    The graph's module shares parameters, buffers and layers with the network, which is left as it was.
    """
    attributes = set(vars(model))
    try:
        graph = _Tracer().trace(model)
        module = fx.GraphModule(model, graph)
    except UNTRACEABLE:
        return None
    finally:
        for name in set(vars(model)) - attributes:  # constants that the tracer leaves on the network
            delattr(model, name)
    return Trace(module, _name_expressions(graph))


def _name_expressions(graph: fx.Graph) -> dict[fx.Node, str]:
    keys: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else f"{node.target.__module__}.{node.target.__name__}"
        arguments = fx.map_arg((node.args, node.kwargs), lambda inner: keys[inner])
        expression = f"{node.op} {target} {arguments!r}"
        seen[expression] += 1  # in-place operations make the second of two equal expressions another value
        keys[node] = hashlib.blake2b(f"{expression} {seen[expression]}".encode(), digest_size=16).hexdigest()
    return keys


def measure(trace: Trace, image_size: int, batches: Iterable[int]) -> list[dict[fx.Node, Any]]:
    """What each node of a graph comes to for batches of square images; tensors are on the meta device."""
    measurement = _Measurement(sketch(trace.module), garbage_collect_values=False, graph=trace.module.graph)
    return [measurement.measure(torch.empty(batch, 3, image_size, image_size, device="meta")) for batch in batches]


_SHAPELESS = (
    nn.modules.batchnorm._BatchNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
)
"""Layers whose output has the shape of their input. Most of the time would go into their arithmetic, which on the meta
device is Python's."""


class _Measurement(fx.Interpreter):
    def measure(self, images: torch.Tensor) -> dict[fx.Node, Any]:
        with torch.no_grad():
            self.run(images)
        return dict(self.env)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(self.fetch_attr(target), _SHAPELESS):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)
