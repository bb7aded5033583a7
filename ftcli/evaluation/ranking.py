"""How well scores tell the images of one class from all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RankCounts:
    """The images by falling score, ready to be counted with any weights.

    A step is a score that members of the class have. `counts` (3 steps, images) adds up, for each step: the members
    with its score, the others with its score, and the others between it and the step before.
    """

    counts: csr_matrix

    def compute_auc_and_ap(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The area under the ROC curve and the average precision, (b,) each, for b columns of weights (images, b).

        Where a column leaves no member or no other image, both are NaN. For weights that count how often an image is
        there they are what scikit-learn's roc_auc_score and average_precision_score give for the images so repeated:
        equal scores count half in the one, and are taken in together in the other.
        """
        step_positives, tied, in_between = np.moveaxis((self.counts @ weights).reshape(-1, 3, weights.shape[1]), 1, 0)
        num_positives = step_positives.sum(0)
        num_negatives = weights.sum(0) - num_positives
        is_defined = (num_positives > 0) & (num_negatives > 0)
        true_positives = np.cumsum(step_positives, 0)
        false_positives = np.cumsum(tied + in_between, 0)
        negatives_below = num_negatives - false_positives + tied / 2
        precision = true_positives / np.maximum(true_positives + false_positives, 1)
        aucs = (step_positives * negatives_below).sum(0) / np.where(is_defined, num_positives * num_negatives, np.nan)
        return aucs, (step_positives * precision).sum(0) / np.where(is_defined, num_positives, np.nan)


def rank_counts(scores: FloatArray, is_positive: BoolArray) -> RankCounts:
    """Sort images by their scores (images,); `members` tells which are of the class."""
    order = np.argsort(-scores, kind="stable")
    tie_group = np.concatenate(([0], np.cumsum(np.diff(scores[order]) != 0)))  # equal scores are on one level
    positive_in_order = is_positive[order]
    positive_groups = np.unique(tie_group[positive_in_order])
    step = np.searchsorted(positive_groups, tie_group)  # the first step that is not above the image
    is_counted = step < len(positive_groups)  # what comes after the last member adds nothing
    order, tie_group, positive_in_order, step = (
        order[is_counted],
        tie_group[is_counted],
        positive_in_order[is_counted],
        step[is_counted],
    )
    rows = 3 * step + np.where(positive_in_order, 0, np.where(tie_group == positive_groups[step], 1, 2))
    shape = (3 * len(positive_groups), len(scores))
    return RankCounts(csr_matrix((np.ones(len(rows)), (rows, order)), shape=shape))
