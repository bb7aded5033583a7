"""What a training comes to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class EpochMetrics(Result):
    """A line of metrics.jsonl. Losses are mean cross-entropies in nats, accuracies shares of 1; epoch 0 is the
    measurement before a stage's first step and has no training figures."""

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
    """Where the seconds of a stage went. `frozen` is the computing of what is kept of the frozen part, `data` the
    waiting for batches, `compiling` what `compile: true` costs, `validation` all of it, `other` what is none of
    these."""

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
        """The seconds of two stages together."""
        left, right = dataclasses.asdict(self), dataclasses.asdict(other)
        return StageTimes(**{part: round(left[part] + right[part], 3) for part in left})


@dataclass(frozen=True)
class StageResult(Result):
    """What a stage came to: its best epoch's validation figures, and what it cost. `seconds` is the whole stage's time,
    from its preparation to its checkpoints; `times` divides it."""

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
    """Figures of the best checkpoint on the test split."""

    __test__ = False  # the name is no pytest class

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class TrainResult(Result):
    """What `ftcli train` returns; `skipped` are the broken images that were left out, `next_command` is what to type
    next. `bottleneck` says what most of the stages' time went into and what would shorten it."""

    run: Path
    best_loss: Path
    stages: tuple[StageResult, ...]
    test: TestResult | None
    skipped: tuple[str, ...]
    next_command: str
    bottleneck: str | None = None
