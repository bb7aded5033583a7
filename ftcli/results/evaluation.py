"""What an evaluation comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.results.base import Result

IntervalMethod = Literal["wilson", "bootstrap"]


@dataclass(frozen=True)
class Metric(Result):
    """A figure of a classifier on some images, with its 95 % interval; `value`, `low` and `high` are None where these
    images do not define it, as the area under a curve where all are of one class, and `low` and `high` where they are
    too alike to tell how far it would move on others, as if all are right.

    `name` is accuracy, top_5_accuracy, balanced_accuracy, macro_f1, roc_auc, average_precision, log_loss or
    expected_calibration_error; `method` is how the interval was found.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    method: IntervalMethod


@dataclass(frozen=True)
class ClassMetrics(Result):
    """Precision, recall and F1 of one class, shares of 1; `images` is how many truly belong to it. `recall_low` and
    `recall_high` bound the 95 % Wilson interval of its recall; `roc_auc` and `average_precision` tell it from all
    others. None where its images, or those of the others, are none."""

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
    """An image, its true class, the class that it was given, and how probable the network held that one."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ConfusedPair(Result):
    """Images of the class `label` that were given the class `predicted`: how many, and their share of `label`'s."""

    label: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class ReliabilityBin(Result):
    """The images whose top probability is above `low` and at most `high`: how many they are, the mean of these
    probabilities, and the share that is right. The means are None where there is no image."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Threshold(Result):
    """Where to call an image `positive` instead of the other of two classes: where the probability of `positive` is at
    least `threshold`.

    `goal` is f1 (the best F1) or recall (the best precision at a recall of at least `wanted`). `chosen_on` is the split
    that the threshold was chosen on; precision, recall and F1 are those on the evaluated images.
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
    """A temperature that logits are divided by (Guo et al., arXiv 1706.04599), fitted on `images` images of `split`:
    log loss and expected calibration error there before and after, and the new checkpoint that has it in its head."""

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
    """What `ftcli evaluate` returns.

    `loss` is the mean cross-entropy in nats; `figures` hold it again, with the others and their intervals.
    `confusion[i][j]` counts images of class i that were given class j. `calibration` holds the expected calibration
    error over 15 equal bins (Guo et al., arXiv 1706.04599), `reliability` the bins. `worst` are the most confident
    mistakes, `unsure` the least confident hits, `confused` the pairs of classes most confused, most images first.
    `thresholds` are for two classes alone. `views` is how many views of each image were averaged.
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
        """The figure of this name, where it is among those that were measured."""
        return next((metric for metric in self.figures if metric.name == name), None)

    def judge_confidence(self) -> Literal["overconfident", "underconfident", "fair"]:
        """Whether the mean probability of the answers lies above, below or within the 95 % interval of the share that
        is right."""
        accuracy, mean_confidence = self.find_metric("accuracy"), self.calibration["mean_confidence"]
        if accuracy is None or accuracy.low is None or accuracy.high is None:
            return "fair"
        return (
            "overconfident"
            if mean_confidence > accuracy.high
            else "underconfident"
            if mean_confidence < accuracy.low
            else "fair"
        )
