"""What decides the values that a frozen prefix gives, written down, so that equal descriptions mean equal values."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from ftcli.data.batches import Draw
from ftcli.models.cut import Cut
from ftcli.models.states import digest_tensor
from ftcli.results import Preprocessing

Digests = Mapping[int, str]
"""Digests of tensors that were worked out just now, by the id of each."""
UNKNOWN: Digests = MappingProxyType({})


def identify_prefix(cut: Cut, preprocessing: Preprocessing, known: Digests) -> dict[str, Any]:
    """All that the values crossing a cut depend on, beside the pixels and where they are computed, as plain JSON types:
    every tensor of the prefix to its last bit, its graph and the settings of its layers, the boundary, mean and std,
    and the libraries. The network's head, and what the weights are called, have no part in it. What is `known` is not
    worked out again."""
    return {
        "tensors": _digest_tensors(cut.prefix, known),
        "graph": _digest_graph(cut.prefix),
        "boundary": [[crossing.name, list(crossing.shape)] for crossing in cut.crossing],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        **_list_versions(cut.prefix),
    }


def name_draw(draw: Draw) -> str:
    """A text that no other draw has."""
    return repr(draw)


def _digest_tensors(prefix: nn.Module, known: Digests) -> str:
    """A SHA-256 over names, kinds, shapes and the digests of the bytes."""
    digest = hashlib.sha256()
    for name, tensor in _list_tensors(prefix):
        own = known.get(id(tensor)) or digest_tensor(tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {own}\n".encode())
    return digest.hexdigest()


def _list_tensors(prefix: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from prefix.named_parameters()
    yield from prefix.named_buffers()
    for path, module in prefix.named_modules():  # what a library keeps on a module without saying so
        yield from ((f"{path}.{name}", value) for name, value in vars(module).items() if isinstance(value, Tensor))


def _digest_graph(prefix: nn.Module) -> str:
    """Of what a graph says, of the kinds of its layers, and of the numbers and words that they were set up with."""
    lines = [str(prefix.code)] if isinstance(prefix, fx.GraphModule) else []
    for path, module in prefix.named_modules():
        kind = type(module) if path or not lines else nn.Module  # a graph is a class of its own in every process
        settings = sorted((name, repr(value)) for name, value in vars(module).items() if _is_setting(name, value))
        lines.append(f"{path} {kind.__module__}.{kind.__qualname__} {settings}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _list_versions(prefix: nn.Module) -> Mapping[str, str]:
    versions = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
    if any(kind.__module__.startswith("timm.") for kind in _list_kinds(prefix)):
        versions["timm"] = importlib.metadata.version("timm")
    return versions


def _list_kinds(prefix: nn.Module) -> Iterator[type]:
    """The kinds of the modules that a prefix calls, and of those that its graph was traced through."""
    yield from (type(module) for module in prefix.modules())
    if isinstance(prefix, fx.GraphModule):
        for node in prefix.graph.nodes:
            yield from (kind for _, kind in node.meta.get("nn_module_stack", {}).values())
