"""How the library tells what happens while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ftcli.results.training import EpochRow


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

    def say(self, text: str) -> None:
        """A sentence for the user: what was chosen, what comes next."""

    def warn(self, text: str) -> None:
        """A sentence that the user should act on, though work goes on."""

    def advance(self, progress: Progress) -> None:
        """Counted work has moved on; `done == total` ends it."""

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        """An epoch of a stage of `epochs` was measured; `best` tells that it is the run's lowest validation loss."""


class Silent:
    """A Reporter that keeps everything to itself."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def advance(self, progress: Progress) -> None:
        pass

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        pass


def tell_duration(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(1, whole)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def tell_count(number: int, noun: str) -> str:
    """A number of things as people say it: 1 epoch, 1,200 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def tell_size(size: int) -> str:
    """A number of bytes as people say it: 12.3 MB."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
