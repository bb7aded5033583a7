"""Names, values and digests of a network's tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]


def is_inside(name: str, module_path: str) -> bool:
    """Return whether a tensor or module is below the module at a path."""
    return name.startswith(f"{module_path}.")


def list_self_and_ancestors(name: str) -> Iterator[str]:
    """Yield a dotted name and the paths of the modules that contain it, except the network itself ("")."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def format_shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text, such as "[3, 512]"."""
    return f"[{', '.join(map(str, tensor.shape))}]"


def copy_state_dict(model: nn.Module, tensors: StateDict) -> None:
    """Copy tensors into the parameters and buffers of the same names and shapes; the others do not change.

    Unlike `load_state_dict` this needs no version metadata, which a checkpoint of plain tensors lacks and MNASNet
    requires.
    """
    targets = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            assert targets[name].shape == tensor.shape, name
            targets[name].copy_(tensor)


def hash_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in element order, independent of its memory format and device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
