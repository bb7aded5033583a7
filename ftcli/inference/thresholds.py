"""Where to draw the line between two classes."""

from __future__ import annotations

import numpy as np

from ftcli.inference.outputs import Outputs
from ftcli.inference.ranking import Floats, Mask
from ftcli.results import Threshold


def find_thresholds(
    chosen: Outputs, evaluated: Outputs, classes: tuple[str, ...], recall: float | None, split: str
) -> tuple[Threshold, ...]:
    """For each of two classes the threshold of the best F1, and with `recall` that of the best precision at such a
    recall; chosen on the outputs of `split` and measured on those evaluated.

    A threshold is a probability that one of the images has, and takes in those that have it. Of equally good ones
    it is the highest for F1, and the one of the highest recall for precision. None for outputs of one class alone.
    """
    if len(set(chosen.labels.tolist())) < len(classes):
        return ()
    found = []
    for label, name in enumerate(classes):
        known, measured = score_class(chosen, label), score_class(evaluated, label)
        for wanted in (None,) if recall is None else (None, recall):
            threshold = choose_threshold(*known, wanted)
            told = measure_threshold(*measured, threshold)
            found.append(Threshold(name, "f1" if wanted is None else "recall", wanted, threshold, *told, split))
    return tuple(found)


def score_class(outputs: Outputs, label: int) -> tuple[Floats, Mask]:
    """The probability of a class for each image, and whether the image is of it."""
    scores: Floats = outputs.logits.double().softmax(1)[:, label].numpy()
    return scores, (outputs.labels == label).numpy()


def choose_threshold(scores: Floats, members: Mask, recall: float | None) -> float:
    """The score of the best F1, or of the best precision at a recall of at least `recall`, taking in what has it.

    Some images, and not all, are members.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with the same score
    hits = np.cumsum(members[order])[last]
    called = np.arange(1, len(scores) + 1)[last]
    if recall is None:
        best = int(np.argmax(2 * hits / (called + members.sum())))
    else:
        enough = np.where(hits / members.sum() >= recall, hits / called, -1.0)
        best = len(enough) - 1 - int(np.argmax(enough[::-1]))
    return float(scores[order][last][best])


def measure_threshold(scores: Floats, members: Mask, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of calling all images members whose score is at least the threshold; 0 where there is
    nothing to divide by."""
    called = scores >= threshold
    hits, some, wanted = int((called & members).sum()), int(called.sum()), int(members.sum())
    return hits / max(1, some), hits / max(1, wanted), 2 * hits / max(1, some + wanted)
