"""What an evaluation comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class ClassRow(Result):
    """Precision, recall and F1 of one class, shares of 1; `images` is how many truly belong to it."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake(Result):
    """An image that was given a wrong class, and how sure the network was."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation(Result):
    """What `ftcli evaluate` returns. `confusion[i][j]` counts images of class i that were given class j;
    `calibration` holds the expected calibration error over 15 equal bins (Guo et al., arXiv 1706.04599);
    `worst` are the most confident mistakes."""

    checkpoint: Path
    split: str
    images: int
    loss: float
    accuracy: float
    per_class: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    calibration: dict[str, float]
    worst: tuple[Mistake, ...]
    skipped: tuple[str, ...] = ()
