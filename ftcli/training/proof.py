"""The proof that what was frozen did not move."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ftcli.errors import RunError
from ftcli.models.states import digest_tensor


def digest_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What each tensor is known by to its last bit."""
    return {name: digest_tensor(tensor) for name, tensor in tensors.items()}


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
