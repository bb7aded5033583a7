"""What figures mean, in plain words, for those who read a report."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ftcli.results import EpochRow, Evaluation, Figure, Scaling, Threshold, tell_count


@dataclass(frozen=True)
class Meaning:
    """What people call a figure, and what it tells; `share` where it is a share of images, shown in percent."""

    label: str
    words: str
    share: bool = False


MEANINGS = {
    "accuracy": Meaning("Accuracy", "The share of images that are given their true class.", True),
    "top_5_accuracy": Meaning(
        "Top-5 accuracy", "The share of images whose true class is among the five most probable.", True
    ),
    "balanced_accuracy": Meaning(
        "Balanced accuracy", "The mean recall of the classes: each counts alike, however many images it has.", True
    ),
    "macro_f1": Meaning("Macro F1", "The mean F1 of the classes; F1 is the harmonic mean of precision and recall."),
    "roc_auc": Meaning(
        "Area under the ROC curve",
        "How often an image of a class is held more probable to be of it than an image of another class; 0.5 is "
        "chance, 1 is perfect.",
    ),
    "average_precision": Meaning(
        "Average precision", "The mean precision over all recalls, as the threshold falls; 1 is perfect."
    ),
    "log_loss": Meaning(
        "Log loss", "The mean of −ln of the probability that the true class was given, in nats; 0 is perfect."
    ),
    "expected_calibration_error": Meaning(
        "Expected calibration error",
        "How far the probabilities are, on average, from the shares that are right; 0 is perfect.",
    ),
}
"""By the names of `results.Figure`."""


def show_text(text: str) -> str:
    """The text on one line, with what no page can show written out: controls, breaks of lines, lone surrogates, what
    is no character, and what would turn the direction of letters about, by which names pass for others."""
    return "".join(sign.encode("unicode_escape").decode() if _is_unfit(sign) else sign for sign in text)


def _is_unfit(sign: str) -> bool:
    code = ord(sign)
    no_character = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    turns = unicodedata.bidirectional(sign) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return no_character or turns or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")


def quote_text(text: str) -> str:
    """`show_text` for within a sentence, which keeps its direction: set apart as <bdi> does where there are tags."""
    return f"\N{FIRST STRONG ISOLATE}{show_text(text)}\N{POP DIRECTIONAL ISOLATE}"


def show_share(share: float) -> str:
    """A share of 1 in percent: 85.4 %."""
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def show_figure(value: float | None, share: bool = False) -> str:
    """A figure to three digits, or in percent; a dash where it is not defined."""
    if value is None:
        return "–"
    return show_share(value) if share else f"{value:.3f}"


def sum_up(evaluation: Evaluation) -> str:
    """How often the classifier is right, beside what always giving the commonest class would come to."""
    found = evaluation.find("accuracy")
    known = found is not None and found.low is not None and found.high is not None
    between = f" (95\N{NO-BREAK SPACE}%: {_show_range(found.low, found.high)})" if known and found else ""
    counts = [sum(row) for row in evaluation.confusion]
    commonest = max(range(len(counts)), key=counts.__getitem__)
    share = counts[commonest] / max(1, evaluation.images)
    name = quote_text(evaluation.classes[commonest])
    verdict = "" if evaluation.accuracy > share else ", so this is no better"
    return (
        f"It is right for {show_share(evaluation.accuracy)} of {tell_count(evaluation.images, 'image')}{between}; "
        f"always answering ‘{name}’ would be right for {show_share(share)}{verdict}."
    )


def _show_range(low: float | None, high: float | None) -> str:
    return f"{100 * (low or 0.0):.1f} to {show_share(high or 0.0)}"


def tell_wilsons(figures: Sequence[Figure]) -> str:
    """Which figures have Wilson's interval: those that are shares of images."""
    labels = [MEANINGS[figure.name].label.lower() for figure in figures if figure.method == "wilson"]
    if len(labels) == 1:
        return f"The interval of {labels[0]} is"
    return f"The intervals of {' and '.join(labels)} are"


def tell_confidence(evaluation: Evaluation) -> str:
    """Whether the classifier is surer than it is right."""
    judged = evaluation.judge_confidence()
    verdict = "no difference beyond chance" if judged == "fair" else f"it is {judged}"
    sure = show_share(evaluation.calibration["mean_confidence"])
    return (
        f"On average it holds its answers {sure} probable, and {show_share(evaluation.accuracy)} of them are right: "
        f"{verdict}."
    )


def tell_scaling(scaling: Scaling) -> str:
    """What a temperature has changed."""
    return (
        f"A temperature of {scaling.temperature:.3f} was fitted on {tell_count(scaling.images, 'image')} of "
        f"{scaling.split}: there the log loss went from {scaling.log_loss_before:.3f} to "
        f"{scaling.log_loss_after:.3f}, and the expected calibration error from {scaling.error_before:.3f} to "
        f"{scaling.error_after:.3f}. The temperature is in the head of the checkpoint that this report is about."
    )


def tell_goal(threshold: Threshold) -> str:
    """What a threshold is the best one for."""
    if threshold.goal == "f1":
        return "best F1"
    return f"best precision at a recall of at least {show_share(threshold.wanted or 0.0)}"


def list_stages(rows: Sequence[EpochRow]) -> list[tuple[str, int]]:
    """The stages of a run in order, with the number of epochs measured in each."""
    stages: list[tuple[str, int]] = []
    for row in rows:
        if not stages or stages[-1][0] != row.stage:
            stages.append((row.stage, 0))
        stages[-1] = (row.stage, stages[-1][1] + (row.epoch > 0))
    return stages
