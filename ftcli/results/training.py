"""Results of `ftcli train` and of training estimates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class EpochMetrics(Result):
    """A line of metrics.jsonl. Losses are mean cross-entropies in nats, accuracies fractions. Epoch 0 is the validation
    before the first step of a stage and has no training metrics."""

    stage: str
    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    lr: float | None
    seconds: float
    images_per_second: float | None


@dataclass(frozen=True)
class StageTimes(Result):
    """The seconds of a stage by activity. `frozen` is feature extraction, `data` waiting for batches, `compiling`
    torch.compile, `solving` the head fit, `validation` all of validation, `other` the rest."""

    frozen: float = 0.0
    data: float = 0.0
    compiling: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    solving: float = 0.0
    validation: float = 0.0
    checkpoints: float = 0.0
    other: float = 0.0

    def __add__(self, other: StageTimes) -> StageTimes:
        """Return the sum of two stages."""
        left, right = dataclasses.asdict(self), dataclasses.asdict(other)
        return StageTimes(**{activity: round(left[activity] + right[activity], 3) for activity in left})


@dataclass(frozen=True)
class StageResult(Result):
    """The validation metrics of a stage's best epoch, and its duration. `seconds` includes setup and checkpoints;
    `times` divides it by activity."""

    name: str
    epochs: int
    start_val_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    trainable_parameters: int
    times: StageTimes


@dataclass(frozen=True)
class TestResult(Result):
    """Metrics of the best checkpoint on the test split."""

    __test__ = False  # not a pytest class

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class TrainResult(Result):
    """The result of `ftcli train`. `skipped` lists corrupt images, `next_command` is a suggestion. `bottleneck` names
    the activity that took most of the time and a way to shorten it."""

    run: Path
    best_loss: Path
    stages: tuple[StageResult, ...]
    test: TestResult | None
    skipped: tuple[str, ...]
    next_command: str
    bottleneck: str | None = None


@dataclass(frozen=True)
class MemoryBreakdown(Result):
    """Peak memory of a training step in bytes.

    `parameters` include buffers, `optimizer` is its state, `activations` are the tensors saved for the backward pass.
    `working` is what the profiled step took beyond these (0 if an earlier stage took more), and `process` the memory of
    the process before the model was created (0 if the model is on another device).
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    process: int


@dataclass(frozen=True)
class StageEstimate(Result):
    """The estimated cost of a stage on this machine.

    `images` and `validation_images` are per epoch; without data, `images` is 1,000. `measured_batch` is smaller than
    `batch_size` if a full batch takes too long to profile; times and memory are then scaled. `seconds` is the whole
    stage: feature extraction, steps, data loading (with data) and validation. `seconds_frozen` is the time of feature
    extraction, 0 if the network is not cut, and `kept_bytes` the size of the features in the cache, which later runs
    reuse; with 0 bytes they are computed in every epoch. `seconds_per_step` is None for a head fit. `memory_bytes` is
    the sum of `memory`.
    """

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
