"""Results of `ftcli evaluate` and `ftcli predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.results.base import Result

IntervalMethod = Literal["wilson", "bca"]
"""Wilson interval, or bias-corrected and accelerated (BCa) bootstrap interval."""
DEFAULT_TOP_K = 5
"""Number of classes that a prediction lists by default."""


@dataclass(frozen=True)
class Metric(Result):
    """A metric with its 95% interval.

    `value`, `low` and `high` are None if the images do not define the metric, such as ROC AUC with one class. `low` and
    `high` are also None if the bootstrap gives no interval: all images are correct, or a class has too few images.
    `name` is a key of METRIC_INFO, `method` the method of the interval.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    method: IntervalMethod


@dataclass(frozen=True)
class ClassMetrics(Result):
    """The metrics of a class, from 0 to 1. `images` is its support. `recall_low` and `recall_high` bound the 95% Wilson
    interval of the recall; `roc_auc` and `average_precision` are one-vs-rest. None if undefined, without images of the
    class or of others."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float
    recall_low: float | None
    recall_high: float | None
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class EvaluatedImage(Result):
    """An image with its true class, its predicted class, and the probability of the latter."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ConfusedPair(Result):
    """The number of images with true class `label` and predicted class `predicted`, and their fraction of `label`."""

    label: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class ReliabilityBin(Result):
    """The images with a confidence above `low` and at most `high`: their number, mean confidence and accuracy. The
    means are None for an empty bin."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Threshold(Result):
    """A decision threshold between two classes: an image is `positive` if its probability is at least `threshold`.

    `goal` is f1 (best F1) or recall (best precision at a recall of at least `wanted`). `chosen_on` is the split on
    which the threshold was chosen; precision, recall and F1 are measured on the evaluated images.
    """

    positive: str
    goal: Literal["f1", "recall"]
    wanted: float | None
    threshold: float
    precision: float
    recall: float
    f1: float
    chosen_on: str


@dataclass(frozen=True)
class TemperatureScaling(Result):
    """Temperature scaling (Guo et al., arXiv 1706.04599), fitted on `images` images of `split`: their log loss and
    calibration error before and after, and the new checkpoint with the temperature in its head."""

    temperature: float
    split: str
    images: int
    log_loss_before: float
    log_loss_after: float
    error_before: float
    error_after: float
    checkpoint: Path


@dataclass(frozen=True)
class EvaluateResult(Result):
    """The result of `ftcli evaluate`.

    `loss` is the mean cross-entropy in nats; `figures` lists it again with the other metrics and their intervals.
    `confusion[i][j]` counts images with true class i and predicted class j. `calibration` holds the mean confidence and
    the expected calibration error over 15 equal bins (Guo et al., arXiv 1706.04599), `reliability` the bins. `worst`
    are the errors with the highest confidence, `unsure` the correct images with the lowest, `confused` the most
    frequent pairs of true and predicted class. `thresholds` exist for two classes only. `views` is the number of views
    of each image that were averaged.
    """

    checkpoint: Path
    split: str
    images: int
    loss: float
    accuracy: float
    figures: tuple[Metric, ...]
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    calibration: dict[str, Any]
    reliability: tuple[ReliabilityBin, ...]
    worst: tuple[EvaluatedImage, ...]
    unsure: tuple[EvaluatedImage, ...]
    confused: tuple[ConfusedPair, ...]
    thresholds: tuple[Threshold, ...] = ()
    views: int = 1
    scaling: TemperatureScaling | None = None
    predictions: Path | None = None
    report: Path | None = None
    skipped: tuple[str, ...] = ()

    def find_metric(self, name: str) -> Metric | None:
        """Return the metric of this name, None if it was not measured."""
        return next((metric for metric in self.figures if metric.name == name), None)

    def judge_confidence(self) -> Literal["overconfident", "underconfident", "fair"]:
        """Return whether the mean confidence is above, below or within the 95% interval of the accuracy."""
        accuracy, mean_confidence = self.find_metric("accuracy"), self.calibration["mean_confidence"]
        if accuracy is None or accuracy.low is None or accuracy.high is None:
            return "fair"
        if mean_confidence > accuracy.high:
            return "overconfident"
        return "underconfident" if mean_confidence < accuracy.low else "fair"


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
