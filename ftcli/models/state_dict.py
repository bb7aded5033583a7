"""The tensors of a network: put back from a plain mapping of names, and known by their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def copy_state_dict(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of their names, which are the network's, as are their shapes.

    The others stay as they are. Unlike `load_state_dict` this needs none of the versions that torch keeps beside a
    state dict, and a checkpoint of plain tensors does not; MNASNet refuses to load without.
    """
    targets = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            assert targets[name].shape == tensor.shape, name
            targets[name].copy_(tensor)


def hash_tensor(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes, in the order of its elements whatever its memory format and device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
