"""The protocol by which the library reports messages and progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ftcli.results.training import EpochMetrics


@dataclass(frozen=True)
class Progress:
    """The progress of a task. `rate` is in units per second, `details` short text such as a loss."""

    task: str
    done: int
    total: int
    rate: float | None = None
    details: str = ""
    unit: Literal["images", "bytes"] = "images"


class Reporter(Protocol):
    """The receiver of messages and progress. Its methods return at once and never raise."""

    def info(self, text: str) -> None:
        """Show a message, such as a choice that was made."""

    def warn(self, text: str) -> None:
        """Show a warning: work continues, but the user should act on it."""

    def update_progress(self, progress: Progress) -> None:
        """Show the progress of a task; `done == total` ends it."""

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        """Show the metrics of an epoch of a stage with `num_epochs`; `is_best` if its val loss is the lowest so far."""


class NullReporter:
    """A Reporter that ignores everything."""

    def info(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def update_progress(self, progress: Progress) -> None:
        pass

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        pass
