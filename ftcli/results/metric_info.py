"""Labels and sentences about metrics, shared by the console and the HTML report."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.results.evaluation import EvaluateResult, TemperatureScaling
from ftcli.results.formatting import format_count, format_percent


@dataclass(frozen=True)
class MetricInfo:
    """The label and description of a metric; `is_fraction` if it is a fraction of images, shown in percent."""

    label: str
    description: str
    is_fraction: bool = False


METRIC_INFO = {
    "accuracy": MetricInfo("Accuracy", "The fraction of images whose predicted class is their true class.", True),
    "top_5_accuracy": MetricInfo(
        "Top-5 accuracy", "The fraction of images whose true class is among the five most probable classes.", True
    ),
    "balanced_accuracy": MetricInfo(
        "Balanced accuracy", "The mean recall of the classes, weighted equally regardless of their support.", True
    ),
    "macro_f1": MetricInfo("Macro F1", "The mean F1 of the classes; F1 is the harmonic mean of precision and recall."),
    "roc_auc": MetricInfo(
        "ROC AUC",
        "The area under the ROC curve: the probability that an image of a class gets a higher score for this class "
        "than an image of another class; 0.5 is chance, 1 is perfect.",
    ),
    "average_precision": MetricInfo(
        "Average precision", "The mean precision over all thresholds, weighted by the increase in recall; 1 is perfect."
    ),
    "log_loss": MetricInfo("Log loss", "The mean of −ln(probability of the true class), in nats; 0 is perfect."),
    "expected_calibration_error": MetricInfo(
        "Calibration error",
        "The expected calibration error (ECE): the mean absolute difference between confidence and accuracy over bins "
        "of confidence; 0 is perfect.",
    ),
}
"""Metrics by `Metric.name`."""


def describe_confidence(result: EvaluateResult) -> str:
    """Compare the mean confidence with the accuracy."""
    judgement = result.judge_confidence()
    verdict = "no significant difference" if judgement == "fair" else f"the model is {judgement}"
    mean_confidence = format_percent(result.calibration["mean_confidence"])
    return f"Mean confidence {mean_confidence}, accuracy {format_percent(result.accuracy)}: {verdict}."


def describe_temperature_scaling(scaling: TemperatureScaling) -> str:
    """Report a temperature with the log loss and calibration error before and after."""
    return (
        f"Temperature {scaling.temperature:.4f}, fitted on {format_count(scaling.images, 'image')} of {scaling.split}. "
        f"On these images the log loss changes from {scaling.log_loss_before:.4f} to {scaling.log_loss_after:.4f} "
        f"and the calibration error from {scaling.error_before:.3f} to {scaling.error_after:.3f}."
    )
