"""What a training comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class EpochRow(Result):
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
class StageResult(Result):
    """What a stage came to: its best epoch's validation figures, and what it cost."""

    name: str
    epochs: int
    start_val_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    trainable_parameters: int


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
    next."""

    run: Path
    best_loss: Path
    stages: tuple[StageResult, ...]
    test: TestResult | None
    skipped: tuple[str, ...]
    next_command: str
