"""What features come to, and how well a simple classifier does on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class FeatureLayer(Result):
    """A layer whose output was taken: its shape for one image, before and after pooling, and how far down the network
    it is, the share of the multiply-adds done before its output, from 0 to 1."""

    name: str
    output_shape: tuple[int, ...]
    shape: tuple[int, ...]
    depth: float

    @property
    def dimensions(self) -> int:
        """How many numbers an image has."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class ProbeScore(Result):
    """A classifier on the features of a layer, fitted on train alone.

    `parameters` are those that cross-validation inside train chose, with the accuracy `cv_accuracy`. `test_accuracy`
    and its 95 % Wilson interval are None where there is no test split, `val_accuracy` where there is no val.
    `test_majority` is the accuracy on test of always giving the class that train has most of.
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
    """What `ftcli extract` returns. `layer`, `dimensions` and `probe` belong together: with several layers they are
    those of the layer that is best in cross-validation, or, without a probe, of the deepest.

    `output` is the file of the features, `picture` that of the accuracies by depth, `head` the checkpoint that has the
    probe as its head; None for what was not asked for. `seconds` is the time that computing the features took.
    `splits` tell how many images each split has, `pool` how outputs were pooled: None averages maps and tokens, and
    leaves vectors as they are.
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
