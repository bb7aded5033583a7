"""The fingerprint of a frozen backbone: everything except the images that determines the bits of its features."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from ftcli.models.cut import ModelCut
from ftcli.models.state_dict import hash_tensor
from ftcli.results import Preprocessing

TensorDigests = Mapping[int, str]
"""Digests of tensors by their id, computed just before."""
NO_DIGESTS: TensorDigests = MappingProxyType({})


def fingerprint_backbone(cut: ModelCut, preprocessing: Preprocessing, known_digests: TensorDigests) -> dict[str, Any]:
    """Return the tensors, graph, layers and boundary of a prefix, mean, std and library versions, as JSON types.

    The head and the names of models and weights are not included. Tensors with known digests are not hashed again.
    """
    return {
        "tensors": _hash_tensors(cut.prefix, known_digests),
        "graph": _hash_graph(cut.prefix),
        "boundary": [[boundary_tensor.name, list(boundary_tensor.shape)] for boundary_tensor in cut.boundary],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        **_list_versions(cut.prefix),
    }


def _hash_tensors(backbone: nn.Module, known_digests: TensorDigests) -> str:
    """Return a SHA-256 of the names, dtypes, shapes and digests of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in _list_tensors(backbone):
        tensor_digest = known_digests.get(id(tensor)) or hash_tensor(tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_digest}\n".encode())
    return digest.hexdigest()


def _list_tensors(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from backbone.named_parameters()
    yield from backbone.named_buffers()
    for path, module in backbone.named_modules():  # attributes that are not registered as parameters or buffers
        yield from ((f"{path}.{name}", value) for name, value in vars(module).items() if isinstance(value, Tensor))


def _hash_graph(backbone: nn.Module) -> str:
    """Return a SHA-256 of the code of a traced graph, and of the types and settings of all layers."""
    lines = [str(backbone.code)] if isinstance(backbone, fx.GraphModule) else []
    for path, module in backbone.named_modules():
        module_type = (
            type(module) if path or not lines else nn.Module
        )  # the class of a GraphModule is generated in each process
        settings = sorted((name, repr(value)) for name, value in vars(module).items() if _is_setting(name, value))
        lines.append(f"{path} {module_type.__module__}.{module_type.__qualname__} {settings}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and _is_plain_value(value)


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain_value(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _list_versions(backbone: nn.Module) -> Mapping[str, str]:
    versions = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
    if any(module_type.__module__.startswith("timm.") for module_type in _list_module_types(backbone)):
        versions["timm"] = importlib.metadata.version("timm")
    return versions


def _list_module_types(backbone: nn.Module) -> Iterator[type]:
    """Yield the types of the modules that a prefix calls, and of those that its graph was traced through."""
    yield from (type(module) for module in backbone.modules())
    if isinstance(backbone, fx.GraphModule):
        for node in backbone.graph.nodes:
            yield from (module_type for _, module_type in node.meta.get("nn_module_stack", {}).values())
