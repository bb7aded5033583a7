"""Where the time of a stage goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from ftcli.results import StageTimes

Part = Literal[
    "frozen", "data", "compiling", "forward", "backward", "optimizer", "solving", "validation", "checkpoints"
]


class Ledger:
    """Seconds by what they were spent on, and in all, from the moment it is made.

    `before` is what `spent` gave when the stage was left, and is counted on from. Of parts within one another each
    second counts as the innermost's. On a GPU, which computes while Python goes on, the parts of a step are measured
    there, by events in its queue.
    """

    def __init__(self, device: torch.device, before: Mapping[str, float] | None = None) -> None:
        self._queue = device if device.type == "cuda" else None
        self._seconds: dict[str, float] = dict(before or {})
        self._elapsed = self._seconds.pop("all", 0.0)
        self._began = time.perf_counter()
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._within = [0.0]

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Count what the context takes as time of a part."""
        if self._queue is not None and part in ("forward", "backward", "optimizer"):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._open.append((part, first, last))
            return
        began = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._add(part, took - self._within.pop())
            self._within[-1] += took

    def settle(self) -> None:
        """Wait for the device and count what it has done; to be called once an epoch, lest events pile up."""
        if self._queue is not None:
            torch.cuda.synchronize(self._queue)
        for part, first, last in self._open:
            self._add(part, first.elapsed_time(last) / 1000)
        self._open.clear()

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._elapsed + time.perf_counter() - self._began

    def spent(self, part: Part) -> float:
        """The seconds of a part so far."""
        return self._seconds.get(part, 0.0)

    def keep(self) -> dict[str, float]:
        """What a ledger begins from that goes on where this one is."""
        return {**self._seconds, "all": self.seconds}

    def sum_up(self) -> StageTimes:
        """The parts, and what is left of the whole."""
        parts = {name: round(value, 3) for name, value in self._seconds.items()}
        return StageTimes(**parts, other=max(0.0, round(self.seconds - sum(self._seconds.values()), 3)))

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds


_REMEDIES = {
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


def name_bottleneck(times: StageTimes) -> str | None:
    """What most of the time of some stages went into, and what would shorten it; None where they took none."""
    seconds: dict[str, float] = times.to_dict()
    total = sum(seconds.values())
    if not total:
        return None
    part = max(seconds, key=lambda name: seconds[name])
    return f"{seconds[part] / total:.0%} of the time went into {_REMEDIES[part]}"
