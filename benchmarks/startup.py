"""How long the command line takes to answer, as a multiple of importing what it cannot do without.

Each pair of commands runs in turn, as whole processes; the ratio is taken pair by pair and its median told.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

PAIRS = (
    ("ftcli --help", ["-m", "ftcli", "--help"], ["-c", "import typer, pydantic, yaml, rich"], 15),
    ("ftcli inspect resnet152", ["-m", "ftcli", "inspect", "resnet152"], ["-c", "import torch, torchvision"], 7),
)


def measure(arguments: Sequence[str]) -> float:
    """The seconds that a Python process takes with these arguments."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print a line a pair."""
    for name, command, base, rounds in PAIRS:
        measure(command), measure(base)
        times = [(measure(command), measure(base)) for _ in range(rounds)]
        ratios = sorted(ours / theirs for ours, theirs in times)
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name}: {ours:.2f} s against {theirs:.2f} s for `python {' '.join(base)}`, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {rounds} pairs)"
        )


if __name__ == "__main__":
    main()
