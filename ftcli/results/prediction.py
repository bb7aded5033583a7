"""Results of `ftcli predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result

DEFAULT_TOP_K = 5
"""Number of classes that a prediction lists by default."""


@dataclass(frozen=True)
class ClassScore(Result):
    """A class and its probability from 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction(Result):
    """The most probable classes of an image, in descending order; `path` is empty for an image that is not a file."""

    path: str
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class PredictionError(Result):
    """An image that cannot be predicted, and the reason."""

    path: str
    why: str


@dataclass(frozen=True)
class PredictResult:
    """The result of `ftcli predict`. `outcomes` is lazy: each image is predicted when it is requested, in input order;
    each prediction lists `top` classes."""

    checkpoint: Path
    classes: tuple[str, ...]
    top: int
    outcomes: Iterator[Prediction | PredictionError]
