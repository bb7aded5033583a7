"""Graphs of named nodes, made by torchvision's feature extraction."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ftcli.models.fx_trace import TRACING_ERRORS, preserve_training_mode


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
