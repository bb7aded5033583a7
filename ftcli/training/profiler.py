"""The profiler of a stage: seconds spent in each part of training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from ftcli.results import StageTimes

TimedPart = Literal[
    "frozen", "data", "compiling", "forward", "backward", "optimizer", "solving", "validation", "checkpoints"
]


class StageProfiler:
    """The seconds of a stage, in total and in each part, from its creation on.

    `state_dict` is that of the profiler of an interrupted stage, whose seconds are added. In nested parts each second
    counts for the innermost one. On a GPU, which computes asynchronously, the parts of a step are measured by events.
    """

    def __init__(self, device: torch.device, state_dict: Mapping[str, float] | None = None) -> None:
        self._cuda_device = device if device.type == "cuda" else None
        self._seconds_by_part: dict[str, float] = dict(state_dict or {})
        self._previous_seconds = self._seconds_by_part.pop("all", 0.0)
        self._start_time = time.perf_counter()
        self._pending_events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._nested_seconds = [0.0]

    @contextmanager
    def measure(self, part: TimedPart) -> Iterator[None]:
        """Count the seconds of the context as those of a part."""
        if self._cuda_device is not None and part in ("forward", "backward", "optimizer"):
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start_event.record()
            yield
            end_event.record()
            self._pending_events.append((part, start_event, end_event))
            return
        start_time = time.perf_counter()
        self._nested_seconds.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start_time
            self._add_seconds(part, elapsed - self._nested_seconds.pop())
            self._nested_seconds[-1] += elapsed

    def synchronize(self) -> None:
        """Wait for the device and count its finished events. Call once per epoch, so that events do not accumulate."""
        if self._cuda_device is not None:
            torch.cuda.synchronize(self._cuda_device)
        for part, start_event, end_event in self._pending_events:
            self._add_seconds(part, start_event.elapsed_time(end_event) / 1000)
        self._pending_events.clear()

    @property
    def total_seconds(self) -> float:
        """The seconds of the stage so far."""
        return self._previous_seconds + time.perf_counter() - self._start_time

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far, from which another profiler continues."""
        return {**self._seconds_by_part, "all": self.total_seconds}

    def summary(self) -> StageTimes:
        """Return the seconds of all parts, and the rest as `other`."""
        parts = {name: round(value, 3) for name, value in self._seconds_by_part.items()}
        return StageTimes(**parts, other=max(0.0, round(self.total_seconds - sum(self._seconds_by_part.values()), 3)))

    def _add_seconds(self, part: str, seconds: float) -> None:
        self._seconds_by_part[part] = self._seconds_by_part.get(part, 0.0) + seconds


_BOTTLENECK_ADVICE = {
    "frozen": "feature extraction; later runs read the features that fit in the cache",
    "data": "data loading; raise data.num_workers, or use smaller image files",
    "compiling": "compiling the steps; train more epochs, or set compile: false",
    "forward": "forward passes; freeze more, lower data.image_size, or choose a smaller model",
    "backward": "backward passes; freeze more, lower data.image_size, or choose a smaller model",
    "optimizer": "optimizer steps; raise data.batch_size",
    "solving": "the head fit; train the head with an optimizer instead",
    "validation": "validation; lower data.val",
    "checkpoints": "writing checkpoints; set --out to a faster disk",
    "other": "starting the stages; train more epochs in one run",
}


def describe_bottleneck(times: StageTimes) -> str | None:
    """Return a sentence on the part with the most seconds and how to shorten it; None if there are no seconds."""
    seconds: dict[str, float] = times.to_dict()
    total = sum(seconds.values())
    if not total:
        return None
    part = max(seconds, key=lambda name: seconds[name])
    return f"{seconds[part] / total:.0%} of the time was spent on {_BOTTLENECK_ADVICE[part]}"
