"""What a network makes of images that nobody has labelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result

DEFAULT_TOP_K = 5
"""How many classes a prediction lists where nothing else is asked for."""


@dataclass(frozen=True)
class ClassScore(Result):
    """A class, and how probable the network holds it, a share of 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction(Result):
    """The classes of an image, the most probable first; `path` is empty for an image that came from no file."""

    path: str
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class PredictionError(Result):
    """An image for which there is no prediction, and what is wrong with it."""

    path: str
    why: str


@dataclass(frozen=True)
class PredictResult:
    """What `ftcli predict` gives: `outcomes` are made as they are taken, predictions in the order in which the images
    were given, and each lists `top` classes."""

    checkpoint: Path
    classes: tuple[str, ...]
    top: int
    outcomes: Iterator[Prediction | PredictionError]
