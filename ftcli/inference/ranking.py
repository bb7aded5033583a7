"""How well scores tell the images of one class from all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Ranking:
    """The images by falling score, ready to be counted with any weights.

    A step is a score that members of the class have. `counts` (3 steps, images) adds up, for each step: the members
    with its score, the others with its score, and the others between it and the step before.
    """

    counts: csr_matrix

    def measure(self, weights: Floats) -> tuple[Floats, Floats]:
        """The area under the ROC curve and the average precision, (b,) each, for b columns of weights (images, b).

        Where a column leaves no member or no other image, both are NaN. For weights that count how often an image is
        there they are what scikit-learn's roc_auc_score and average_precision_score give for the images so repeated:
        equal scores count half in the one, and are taken in together in the other.
        """
        members, beside, between = np.moveaxis((self.counts @ weights).reshape(-1, 3, weights.shape[1]), 1, 0)
        positives = members.sum(0)
        negatives = weights.sum(0) - positives
        defined = (positives > 0) & (negatives > 0)
        taken = np.cumsum(members, 0)
        wrong = np.cumsum(beside + between, 0)
        below = negatives - wrong + beside / 2
        precision = taken / np.maximum(taken + wrong, 1)
        areas = (members * below).sum(0) / np.where(defined, positives * negatives, np.nan)
        return areas, (members * precision).sum(0) / np.where(defined, positives, np.nan)


def rank(scores: Floats, members: Mask) -> Ranking:
    """Sort images by their scores (images,); `members` tells which are of the class."""
    order = np.argsort(-scores, kind="stable")
    level = np.concatenate(([0], np.cumsum(np.diff(scores[order]) != 0)))  # equal scores are on one level
    own = members[order]
    at = np.unique(level[own])
    step = np.searchsorted(at, level)  # the first step that is not above the image
    counted = step < len(at)  # what comes after the last member adds nothing
    order, level, own, step = order[counted], level[counted], own[counted], step[counted]
    rows = 3 * step + np.where(own, 0, np.where(level == at[step], 1, 2))
    shape = (3 * len(at), len(scores))
    return Ranking(csr_matrix((np.ones(len(rows)), (rows, order)), shape=shape))
