"""What figures mean, in plain words, for those who read a report."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ftcli.results import (
    METRIC_INFO,
    EpochMetrics,
    EvaluateResult,
    Metric,
    TemperatureScaling,
    Threshold,
    format_count,
)


def escape_text(text: str) -> str:
    """The text on one line, with what no page can show written out: controls, breaks of lines, lone surrogates, what
    is no character, and what would turn the direction of letters about, by which names pass for others."""
    return "".join(char.encode("unicode_escape").decode() if _is_unprintable(char) else char for char in text)


def _is_unprintable(char: str) -> bool:
    code_point = ord(char)
    is_noncharacter = 0xFDD0 <= code_point <= 0xFDEF or code_point & 0xFFFE == 0xFFFE
    changes_direction = unicodedata.bidirectional(char) in (
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    )
    return is_noncharacter or changes_direction or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def isolate_text(text: str) -> str:
    """`escape_text` for within a sentence, which keeps its direction: set apart as <bdi> does where there are tags."""
    return f"\N{FIRST STRONG ISOLATE}{escape_text(text)}\N{POP DIRECTIONAL ISOLATE}"


def format_percent(fraction: float) -> str:
    """A share of 1 in percent: 85.4 %."""
    return f"{fraction:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def format_metric(value: float | None, is_fraction: bool = False) -> str:
    """A figure to three digits, or in percent; a dash where it is not defined."""
    if value is None:
        return "–"
    return format_percent(value) if is_fraction else f"{value:.3f}"


def summarize_accuracy(evaluation: EvaluateResult) -> str:
    """How often the classifier is right, beside what always giving the commonest class would come to."""
    accuracy_metric = evaluation.find_metric("accuracy")
    has_interval = accuracy_metric is not None and accuracy_metric.low is not None and accuracy_metric.high is not None
    interval_text = (
        f" (95\N{NO-BREAK SPACE}%: {_format_range(accuracy_metric.low, accuracy_metric.high)})"
        if has_interval and accuracy_metric
        else ""
    )
    support = [sum(row) for row in evaluation.confusion]
    majority_class = max(range(len(support)), key=support.__getitem__)
    majority_fraction = support[majority_class] / max(1, evaluation.images)
    name = isolate_text(evaluation.classes[majority_class])
    verdict = "" if evaluation.accuracy > majority_fraction else ", so this is no better"
    return (
        f"It is right for {format_percent(evaluation.accuracy)} of {format_count(evaluation.images, 'image')}{interval_text}; "
        f"always answering ‘{name}’ would be right for {format_percent(majority_fraction)}{verdict}."
    )


def _format_range(low: float | None, high: float | None) -> str:
    return f"{100 * (low or 0.0):.1f} to {format_percent(high or 0.0)}"


def describe_wilson_intervals(metrics: Sequence[Metric]) -> str:
    """Which figures have Wilson's interval: those that are shares of images."""
    labels = [METRIC_INFO[figure.name].label.lower() for figure in metrics if figure.method == "wilson"]
    if len(labels) == 1:
        return f"The interval of {labels[0]} is"
    return f"The intervals of {' and '.join(labels)} are"


def describe_confidence(evaluation: EvaluateResult) -> str:
    """Whether the classifier is surer than it is right."""
    judgement = evaluation.judge_confidence()
    verdict = "no difference beyond chance" if judgement == "fair" else f"it is {judgement}"
    mean_confidence = format_percent(evaluation.calibration["mean_confidence"])
    return (
        f"On average it holds its answers {mean_confidence} probable, and {format_percent(evaluation.accuracy)} of them are right: "
        f"{verdict}."
    )


def describe_temperature_scaling(scaling: TemperatureScaling) -> str:
    """What a temperature has changed."""
    return (
        f"A temperature of {scaling.temperature:.3f} was fitted on {format_count(scaling.images, 'image')} of "
        f"{scaling.split}: there the log loss went from {scaling.log_loss_before:.3f} to "
        f"{scaling.log_loss_after:.3f}, and the expected calibration error from {scaling.error_before:.3f} to "
        f"{scaling.error_after:.3f}. The temperature is in the head of the checkpoint that this report is about."
    )


def describe_goal(threshold: Threshold) -> str:
    """What a threshold is the best one for."""
    if threshold.goal == "f1":
        return "best F1"
    return f"best precision at a recall of at least {format_percent(threshold.wanted or 0.0)}"


def count_stage_epochs(history: Sequence[EpochMetrics]) -> list[tuple[str, int]]:
    """The stages of a run in order, with the number of epochs measured in each."""
    stages: list[tuple[str, int]] = []
    for row in history:
        if not stages or stages[-1][0] != row.stage:
            stages.append((row.stage, 0))
        stages[-1] = (row.stage, stages[-1][1] + (row.epoch > 0))
    return stages
