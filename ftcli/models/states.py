"""The tensors of a network, taken back from a plain mapping of names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of their names, which are the network's, as are their shapes.

    The others stay as they are. Unlike `load_state_dict` this needs none of the versions that torch keeps beside a
    state dict, and a checkpoint of plain tensors does not; MNASNet refuses to load without.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            assert own[name].shape == tensor.shape, name
            own[name].copy_(tensor)
