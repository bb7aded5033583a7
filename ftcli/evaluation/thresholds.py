"""Decision thresholds between two classes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ftcli.evaluation.bootstrap import BoolArray, FloatArray
from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import Threshold


def find_thresholds(
    selection_outputs: EvalOutputs,
    eval_outputs: EvalOutputs,
    classes: tuple[str, ...],
    min_recall: float | None,
    selection_split: str,
) -> tuple[Threshold, ...]:
    """Choose for each of two classes the threshold of the best F1 and, with `min_recall`, of the best precision at it.

    Thresholds are chosen on `selection_outputs` and measured on `eval_outputs`. A threshold is the probability of an
    image, and an image with this probability is positive. Ties go to the highest threshold for F1 and to the highest
    recall for precision. Empty if the selection has images of one class only.
    """
    if len(set(selection_outputs.labels.tolist())) < len(classes):
        return ()
    thresholds = []
    for label, name in enumerate(classes):
        selection_scores, eval_scores = class_scores(selection_outputs, label), class_scores(eval_outputs, label)
        for target_recall in (None,) if min_recall is None else (None, min_recall):
            threshold = choose_threshold(*selection_scores, target_recall)
            metrics = compute_threshold_metrics(*eval_scores, threshold)
            goal: Literal["f1", "recall"] = "f1" if target_recall is None else "recall"
            thresholds.append(Threshold(name, goal, target_recall, threshold, *metrics, selection_split))
    return tuple(thresholds)


def class_scores(outputs: EvalOutputs, label: int) -> tuple[FloatArray, BoolArray]:
    """Return the probability of a class for each image, and the images of this class."""
    scores: FloatArray = outputs.probabilities[:, label].numpy()
    return scores, (outputs.labels == label).numpy()


def choose_threshold(scores: FloatArray, is_positive: BoolArray, min_recall: float | None) -> float:
    """Return the score with the best F1, or with the best precision at a recall of at least `min_recall`.

    Needs positive and negative images.
    """
    order = np.argsort(-scores, kind="stable")
    is_last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(is_positive[order])[is_last_of_ties]
    num_predicted = np.arange(1, len(scores) + 1)[is_last_of_ties]
    if min_recall is None:
        best_index = int(np.argmax(2 * true_positives / (num_predicted + is_positive.sum())))
    else:
        eligible_precision = np.where(
            true_positives / is_positive.sum() >= min_recall, true_positives / num_predicted, -1.0
        )
        best_index = len(eligible_precision) - 1 - int(np.argmax(eligible_precision[::-1]))
    return float(scores[order][is_last_of_ties][best_index])


def compute_threshold_metrics(
    scores: FloatArray, is_positive: BoolArray, threshold: float
) -> tuple[float, float, float]:
    """Return precision, recall and F1 of predicting positive at scores of at least `threshold`; 0 for 0 / 0."""
    predicted_positive = scores >= threshold
    true_positives, num_predicted, num_positives = (
        int((predicted_positive & is_positive).sum()),
        int(predicted_positive.sum()),
        int(is_positive.sum()),
    )
    return (
        true_positives / max(1, num_predicted),
        true_positives / max(1, num_positives),
        2 * true_positives / max(1, num_predicted + num_positives),
    )
