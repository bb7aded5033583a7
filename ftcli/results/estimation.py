"""What a training is going to cost."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.results.base import Result


@dataclass(frozen=True)
class MemoryBreakdown(Result):
    """Bytes that a training step needs at once: the parameters and buffers, the gradients, what the optimizer keeps,
    what the forward pass keeps for the backward pass, what the tried step was seen to take beyond these (0 where a
    stage tried before took more), and what the process held before it had a network (0 where the network is on another
    device)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    process: int


@dataclass(frozen=True)
class StageEstimate(Result):
    """What a stage costs on this machine. `images` and `validation_images` are those of an epoch; without data they
    stand for 1,000 training images. `measured_batch` is smaller than `batch_size` where a whole batch takes too long
    to try; figures are then scaled. `seconds` is the whole stage: the frozen part, steps, reading (where there are
    data) and validations. `seconds_frozen` is what the frozen part takes where the network is cut behind it, else 0,
    and `kept_bytes` what the cache then holds of it on the disk: it is computed once and read, and a later run saves
    the most of that; with 0 bytes it is computed in every epoch. A stage that is solved has no steps:
    `seconds_per_step` is None. `memory_bytes` is the sum of `memory`."""

    stage: str
    epochs: int
    images: int
    validation_images: int
    from_data: bool
    batch_size: int
    measured_batch: int
    seconds_per_step: float | None
    seconds_per_validation_image: float
    seconds_per_image_read: float | None
    kept_bytes: int
    seconds_frozen: float
    seconds: float
    memory: MemoryBreakdown
    memory_bytes: int
