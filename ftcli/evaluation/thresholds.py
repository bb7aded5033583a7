"""Where to draw the line between two classes."""

from __future__ import annotations

import numpy as np

from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.ranking import BoolArray, FloatArray
from ftcli.results import Threshold


def find_thresholds(
    selection_outputs: EvalOutputs,
    eval_outputs: EvalOutputs,
    classes: tuple[str, ...],
    min_recall: float | None,
    selection_split: str,
) -> tuple[Threshold, ...]:
    """For each of two classes the threshold of the best F1, and with `recall` that of the best precision at such a
    recall; chosen on the outputs of `split` and measured on those evaluated.

    A threshold is a probability that one of the images has, and takes in those that have it. Of equally good ones
    it is the highest for F1, and the one of the highest recall for precision. None for outputs of one class alone.
    """
    if len(set(selection_outputs.labels.tolist())) < len(classes):
        return ()
    thresholds = []
    for label, name in enumerate(classes):
        selection_scores, eval_scores = class_scores(selection_outputs, label), class_scores(eval_outputs, label)
        for target_recall in (None,) if min_recall is None else (None, min_recall):
            threshold = choose_threshold(*selection_scores, target_recall)
            metrics = compute_threshold_metrics(*eval_scores, threshold)
            thresholds.append(
                Threshold(
                    name,
                    "f1" if target_recall is None else "recall",
                    target_recall,
                    threshold,
                    *metrics,
                    selection_split,
                )
            )
    return tuple(thresholds)


def class_scores(outputs: EvalOutputs, label: int) -> tuple[FloatArray, BoolArray]:
    """The probability of a class for each image, and whether the image is of it."""
    scores: FloatArray = outputs.logits.double().softmax(1)[:, label].numpy()
    return scores, (outputs.labels == label).numpy()


def choose_threshold(scores: FloatArray, is_positive: BoolArray, min_recall: float | None) -> float:
    """The score of the best F1, or of the best precision at a recall of at least `recall`, taking in what has it.

    Some images, and not all, are members.
    """
    order = np.argsort(-scores, kind="stable")
    is_last_of_ties = np.append(np.diff(scores[order]) != 0, True)  # of those with the same score
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
    """Precision, recall and F1 of calling all images members whose score is at least the threshold; 0 where there is
    nothing to divide by."""
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
