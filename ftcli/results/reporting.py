"""How the library tells what happens while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ftcli.results.training import EpochMetrics


@dataclass(frozen=True)
class Progress:
    """How far counted work has come. `rate` is units a second, `details` short words such as a loss."""

    task: str
    done: int
    total: int
    rate: float | None = None
    details: str = ""
    unit: Literal["images", "bytes"] = "images"


class Reporter(Protocol):
    """Through this the library tells what happens. It must return at once and never raise."""

    def info(self, text: str) -> None:
        """A sentence for the user: what was chosen, what comes next."""

    def warn(self, text: str) -> None:
        """A sentence that the user should act on, though work goes on."""

    def update_progress(self, progress: Progress) -> None:
        """Counted work has moved on; `done == total` ends it."""

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        """An epoch of a stage of `epochs` was measured; `best` tells that it is the run's lowest validation loss."""


class NullReporter:
    """A Reporter that keeps everything to itself."""

    def info(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def update_progress(self, progress: Progress) -> None:
        pass

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        pass


def format_duration(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 20 s, 2 h 5 min."""
    total_seconds = round(seconds)
    if total_seconds < 60:
        return f"{max(1, total_seconds)} s"
    if total_seconds < 3600:
        return f"{total_seconds // 60} min {total_seconds % 60} s"
    return f"{total_seconds // 3600} h {total_seconds % 3600 // 60} min"


def format_count(number: int, noun: str) -> str:
    """A number of things as people say it: 1 epoch, 1,200 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_size(num_bytes: int) -> str:
    """A number of bytes as people say it: 12.3 MB."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
