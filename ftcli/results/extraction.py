"""Results of `ftcli extract`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class FeatureLayer(Result):
    """A layer whose output was extracted. Shapes are for one image, before and after pooling; `depth` is the fraction
    of the network's multiply-adds up to its output, from 0 to 1."""

    name: str
    output_shape: tuple[int, ...]
    shape: tuple[int, ...]
    depth: float

    @property
    def dimensions(self) -> int:
        """Number of features per image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ProbeScore(Result):
    """The accuracies of a probe on the features of a layer, fitted on train only.

    `parameters` were selected by cross-validation within train, with the mean accuracy `cv_accuracy`. `test_accuracy`
    and its 95% Wilson interval are None without a test split, `val_accuracy` without a val split. `test_majority` is
    the test accuracy of always predicting the most frequent class of train.
    """

    name: str
    layer: str
    parameters: dict[str, Any]
    folds: int
    cv_accuracy: float
    train_images: int
    val_accuracy: float | None
    test_accuracy: float | None
    test_low: float | None
    test_high: float | None
    test_images: int
    seconds: float
    test_majority: float | None = None


@dataclass(frozen=True)
class ExtractResult(Result):
    """The result of `ftcli extract`.

    With several layers, `layer`, `dimensions` and `probe` are those of the layer with the best cross-validation
    accuracy, or of the deepest without a probe. `output` is the file of features, `picture` the plot of accuracy by
    depth, `head` the checkpoint with the probe as its head; None if not requested. `seconds` is the time of the feature
    extraction. `splits` counts images by split; `pool` is None for the default pooling.
    """

    source: str
    weights: str
    output: Path | None
    layer: str
    images: int
    dimensions: int
    seconds: float
    probe: ProbeScore | None
    layers: tuple[FeatureLayer, ...]
    probes: tuple[ProbeScore, ...] = ()
    picture: Path | None = None
    head: Path | None = None
    skipped: tuple[str, ...] = ()
    next_command: str | None = None
    splits: dict[str, int] = field(default_factory=dict)
    pool: str | None = None
