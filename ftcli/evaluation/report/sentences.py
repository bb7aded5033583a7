"""Text of the report: names made safe to display, formatted metrics, and sentences."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ftcli.results import (
    METRIC_INFO,
    EpochMetrics,
    EvaluatedImage,
    EvaluateResult,
    Metric,
    Threshold,
    format_count,
    format_percent,
)

_DIRECTION_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def escape_text(text: str) -> str:
    """Return a text on one line, with unprintable characters as backslash escapes.

    These are controls, line breaks, lone surrogates, noncharacters, and direction controls, which can disguise names.
    """
    return "".join(char.encode("unicode_escape").decode() if _is_unprintable(char) else char for char in text)


def _is_unprintable(char: str) -> bool:
    code_point = ord(char)
    is_noncharacter = 0xFDD0 <= code_point <= 0xFDEF or code_point & 0xFFFE == 0xFFFE
    is_direction_control = unicodedata.bidirectional(char) in _DIRECTION_CONTROLS
    return is_noncharacter or is_direction_control or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def isolate_text(text: str) -> str:
    """Return `escape_text` in Unicode isolates, which keep the direction of the sentence around it, as <bdi> does."""
    return f"\N{FIRST STRONG ISOLATE}{escape_text(text)}\N{POP DIRECTIONAL ISOLATE}"


def format_metric(value: float | None, is_fraction: bool = False) -> str:
    """Return a metric with three decimals or in percent; a dash for None."""
    if value is None:
        return "–"
    return format_percent(value) if is_fraction else f"{value:.3f}"


def summarize_accuracy(evaluation: EvaluateResult) -> str:
    """Return the accuracy with its interval, next to that of always predicting the most frequent class."""
    accuracy = evaluation.find_metric("accuracy")
    interval = ""
    if accuracy is not None and accuracy.low is not None and accuracy.high is not None:
        interval = f" (95% interval {format_percent(accuracy.low)} to {format_percent(accuracy.high)})"
    support = [sum(row) for row in evaluation.confusion]
    majority_class = max(range(len(support)), key=support.__getitem__)
    majority_fraction = support[majority_class] / max(1, evaluation.images)
    verdict = "" if evaluation.accuracy > majority_fraction else ". The classifier does not exceed this baseline"
    return (
        f"Accuracy {format_percent(evaluation.accuracy)}{interval} on {format_count(evaluation.images, 'image')}. "
        f"Always predicting the most frequent class, {isolate_text(evaluation.classes[majority_class])}, gives "
        f"{format_percent(majority_fraction)}{verdict}."
    )


def describe_intervals(metrics: Sequence[Metric]) -> str:
    """Name the methods of the intervals, and the reason of missing ones."""
    wilson = " and ".join(METRIC_INFO[metric.name].label.lower() for metric in metrics if metric.method == "wilson")
    sentences = f"Wilson intervals for {wilson}, BCa bootstrap intervals over the images for all other metrics."
    if any(metric.low is None and metric.value is not None for metric in metrics):
        sentences += (
            " No interval (–) is given if all resamples give the same value, or if the bootstrap is too biased, which"
            " happens with few images per class."
        )
    return sentences


def describe_example(example: EvaluatedImage) -> str:
    """Return the alternative text of an image."""
    path, label, predicted = map(isolate_text, (example.path, example.label, example.predicted))
    verdict = "correct" if example.label == example.predicted else "error"
    return f"{path}: true class {label}, predicted class {predicted} ({format_percent(example.probability)}), {verdict}"


def describe_goal(threshold: Threshold) -> str:
    """Return the goal of a threshold."""
    if threshold.goal == "f1":
        return "best F1"
    return f"best precision at a recall of at least {format_percent(threshold.wanted or 0.0)}"


def count_stage_epochs(history: Sequence[EpochMetrics]) -> list[tuple[str, int]]:
    """Return the stages of a run in order, with their number of epochs."""
    stages: list[tuple[str, int]] = []
    for row in history:
        if not stages or stages[-1][0] != row.stage:
            stages.append((row.stage, 0))
        stages[-1] = (row.stage, stages[-1][1] + (row.epoch > 0))
    return stages
