"""What there is to tell about pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.results.base import Result


@dataclass(frozen=True)
class LoadedWeights(Result):
    """Weights that were loaded into a network: where they came from, the SHA-256 of their file, how many of its tensors
    found a place, and which were left out, each with its shape."""

    source: str
    sha256: str | None
    tensors: int
    left_out: tuple[str, ...]
