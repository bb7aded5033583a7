"""The proof that what was frozen did not move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ftcli.errors import RunError


def digest_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A SHA-256 of each tensor's bytes, in the order of its elements whatever its memory format."""
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def prove_unmoved(before: Mapping[str, str], tensors: Mapping[str, Tensor], stage: str) -> None:
    """Raise RunError with the names of the frozen tensors that differ from their digests in so much as a bit."""
    after = digest_tensors(tensors)
    moved = [name for name in before if after.get(name) != before[name]]
    if moved:
        named = ", ".join(moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
        raise RunError(
            f"stage {stage}: frozen tensors moved: {named}; the stage's result is not to be trusted, please report "
            "this with the recipe"
        )


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()
