"""Start-up time of the command line relative to its imports.

Each pair of commands runs in turn, as processes; the result is the median ratio of the pairs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

PAIRS = (
    ("ftcli --help", ["-m", "ftcli", "--help"], ["-c", "import typer, pydantic, yaml, rich"], 15),
    ("ftcli inspect resnet152", ["-m", "ftcli", "inspect", "resnet152"], ["-c", "import torch, torchvision"], 7),
)


@dataclass(frozen=True)
class StartupTiming:
    """Median seconds of a command and of `base`, with the median, lowest and highest ratio of a pair."""

    name: str
    base: str
    ours: float
    theirs: float
    ratios: tuple[float, float, float]
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.ours:.2f} s against {self.theirs:.2f} s for `{self.base}`, "
            f"ratio {self.format_ratio()}, {self.pairs} pairs"
        )

    def format_ratio(self) -> str:
        """Return the median ratio with its range."""
        middle, low, high = self.ratios
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def time_python(arguments: Sequence[str]) -> float:
    """Return the seconds of a Python process with these arguments."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure_pairs(fraction: float = 1.0) -> Iterator[StartupTiming]:
    """Measure all pairs; `fraction` reduces the number of rounds."""
    for name, command, base, rounds in PAIRS:
        time_python(command), time_python(base)
        times = [(time_python(command), time_python(base)) for _ in range(max(1, round(rounds * fraction)))]
        ratios = sorted(ours / theirs for ours, theirs in times)
        ours, theirs = (median(column) for column in zip(*times, strict=True))
        yield StartupTiming(
            name, f"python {' '.join(base)}", ours, theirs, (median(ratios), ratios[0], ratios[-1]), len(times)
        )


def main() -> None:
    """Print one line for each pair."""
    for answer in measure_pairs():
        print(answer)


if __name__ == "__main__":
    main()
