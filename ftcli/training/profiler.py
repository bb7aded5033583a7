"""Where the time of a stage goes."""

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
    """Seconds by what they were spent on, and in all, from the moment it is made.

    `before` is what `spent` gave when the stage was left, and is counted on from. Of parts within one another each
    second counts as the innermost's. On a GPU, which computes while Python goes on, the parts of a step are measured
    there, by events in its queue.
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
        """Count what the context takes as time of a part."""
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
        """Wait for the device and count what it has done; to be called once an epoch, lest events pile up."""
        if self._cuda_device is not None:
            torch.cuda.synchronize(self._cuda_device)
        for part, start_event, end_event in self._pending_events:
            self._add_seconds(part, start_event.elapsed_time(end_event) / 1000)
        self._pending_events.clear()

    @property
    def total_seconds(self) -> float:
        """All seconds so far."""
        return self._previous_seconds + time.perf_counter() - self._start_time

    def seconds_in(self, part: TimedPart) -> float:
        """The seconds of a part so far."""
        return self._seconds_by_part.get(part, 0.0)

    def state_dict(self) -> dict[str, float]:
        """What a ledger begins from that goes on where this one is."""
        return {**self._seconds_by_part, "all": self.total_seconds}

    def summary(self) -> StageTimes:
        """The parts, and what is left of the whole."""
        parts = {name: round(value, 3) for name, value in self._seconds_by_part.items()}
        return StageTimes(**parts, other=max(0.0, round(self.total_seconds - sum(self._seconds_by_part.values()), 3)))

    def _add_seconds(self, part: str, seconds: float) -> None:
        self._seconds_by_part[part] = self._seconds_by_part.get(part, 0.0) + seconds


_BOTTLENECK_ADVICE = {
    "frozen": "the frozen part and the decoding of images; a later run reads what the cache could keep of them",
    "data": "waiting for images; raise data.num_workers, or make the image files smaller",
    "compiling": "compiling the steps; train more epochs, or set compile: false",
    "forward": "the forward passes of what trains; freeze more, lower data.image_size, or take a smaller network",
    "backward": "the backward passes of what trains; freeze more, lower data.image_size, or take a smaller network",
    "optimizer": "the optimizer's steps; raise data.batch_size",
    "solving": "solving the head; train it instead",
    "validation": "the validations; lower data.val",
    "checkpoints": "writing checkpoints; give --out on a faster disk",
    "other": "preparing the stages; train more epochs in one run",
}


def describe_bottleneck(times: StageTimes) -> str | None:
    """What most of the time of some stages went into, and what would shorten it; None where they took none."""
    seconds: dict[str, float] = times.to_dict()
    total = sum(seconds.values())
    if not total:
        return None
    part = max(seconds, key=lambda name: seconds[name])
    return f"{seconds[part] / total:.0%} of the time went into {_BOTTLENECK_ADVICE[part]}"
