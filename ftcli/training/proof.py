"""The proof that what was frozen did not move."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ftcli.errors import RunError, format_list
from ftcli.models.state_dict import hash_tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What each tensor is known by to its last bit."""
    return {name: hash_tensor(tensor) for name, tensor in tensors.items()}


def check_frozen_unchanged(expected: Mapping[str, str], tensors: Mapping[str, Tensor], stage: str) -> None:
    """Raise RunError with the names of the frozen tensors that differ from their digests in so much as a bit."""
    current = hash_tensors(tensors)
    changed = [name for name in expected if current.get(name) != expected[name]]
    if changed:
        changed_names = format_list(changed, 3)
        raise RunError(
            f"stage {stage}: frozen tensors moved: {changed_names}; the stage's result is not to be trusted, please report "
            "this with the recipe"
        )
