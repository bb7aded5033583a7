"""The protocol by which the library reports progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ftcli.errors import StopRequestedError
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
    """The receiver of progress. Its methods return at once and never raise."""

    def update_progress(self, progress: Progress) -> None:
        """Show the progress of a task; `done == total` ends it."""

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        """Show the metrics of an epoch of a stage with `num_epochs`; `is_best` if its val loss is the lowest so far."""


class NullReporter:
    """A Reporter that ignores everything."""

    def update_progress(self, progress: Progress) -> None:
        pass

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        pass


@dataclass(frozen=True)
class ProgressTask:
    """A named task that reports its progress and raises StopRequestedError once `should_stop` returns true."""

    name: str
    reporter: Reporter
    should_stop: Callable[[], bool] = lambda: False

    def subtask(self, name: str) -> ProgressTask:
        """Return a part of this task."""
        return replace(self, name=f"{self.name}: {name}")

    def update(self, done: int, total: int, rate: float | None = None) -> None:
        """Report progress, then check for a stop."""
        self.reporter.update_progress(Progress(self.name, done, total, rate))
        self.check_stop()

    def check_stop(self) -> None:
        """Raise StopRequestedError if a stop was requested."""
        if self.should_stop():
            raise StopRequestedError(self.name)


class ProgressCounter:
    """The count of finished images of a task, with the rate at which they are processed.

    `num_done` images were finished before. Reports are at least `min_interval` seconds apart.
    """

    def __init__(self, task: ProgressTask, total: int, num_done: int = 0, min_interval: float = 0.0) -> None:
        self.total = total
        self._task = task
        self._num_done_before = num_done
        self._num_processed = 0
        self._min_interval = min_interval
        self._start_time = self._last_report = time.monotonic()

    def advance(self, num_images: int = 1) -> None:
        """Count images as finished, report, and check for a stop."""
        self._num_processed += num_images
        now, num_done = time.monotonic(), self._num_done_before + self._num_processed
        if now - self._last_report >= self._min_interval or num_done == self.total:
            self._last_report = now
            self._task.update(num_done, self.total, self._num_processed / max(now - self._start_time, 1e-9))
        else:
            self._task.check_stop()
