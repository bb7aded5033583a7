"""A linear head that is solved for: logistic regression on the features, to its optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ftcli.errors import RunError
from ftcli.features.folding import fold_estimator
from ftcli.features.tuning import Fold, Parameters, divide, fit_pipeline, list_candidates, prepare

NAME = "logistic"


@dataclass(frozen=True)
class Lesson:
    """What a head is solved from: the features (n, d) of the training images, their labels, int64, which take in every
    one of `classes` classes, how much each weighs, and the groups that stay together in cross-validation, None where
    there are none."""

    features: NDArray[Any]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.str_] | None
    classes: int


@dataclass(frozen=True)
class Solution:
    """The linear layer that was found, weight (classes, d) and bias (classes), float32, with the strength C of its
    fit to the images against its L2 penalty, and the held-out cross-entropy, in nats, that C was chosen by."""

    weight: Tensor
    bias: Tensor
    strength: float
    held_out_loss: float
    folds: int


def solve_head(lesson: Lesson, seed: int, where: str) -> Solution:
    """The linear layer that minimises the weighted cross-entropy of the training images plus an L2 penalty on its
    weights, as they act on standardised features; the bias is free.

    C rises by powers of ten as long as the weighted cross-entropy of held-out images falls, in stratified
    cross-validation in up to 5 folds with the images of a group on the same side. Only weights relative to one another
    count. The same lesson and seed give the same layer.

    Raises RunError that begins with `where` for features that are not finite, DataError where groups leave no folds
    that have every class.
    """
    if broken := int((~np.isfinite(lesson.features).all(axis=1)).sum()):
        raise RunError(
            f"{where}: what the frozen layers give is not finite for {broken} of {len(lesson.features)} training "
            "images; check the weights, or set precision: float32"
        )
    features, labels = prepare(NAME, lesson.features), lesson.labels
    weights = lesson.weights / lesson.weights.mean()
    folds = divide(labels, lesson.groups, seed, where)
    chosen: Parameters = {}
    lowest = math.inf
    for parameters in list_candidates(NAME, features, min(len(train) for train, _ in folds)):
        loss = sum(_hold_out(features, labels, weights, parameters, fold, seed) for fold in folds)
        if loss >= lowest:
            break  # the loss has one valley, and the fits beyond it take the longest
        chosen, lowest = parameters, loss
    best = fit_pipeline(NAME, chosen, features, labels, seed, weights)
    weight, bias = fold_estimator(best, lesson.classes, features.shape[1])
    return Solution(weight, bias, float(chosen["C"]), lowest / len(labels), len(folds))


def _hold_out(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    parameters: Parameters,
    fold: Fold,
    seed: int,
) -> float:
    """The sum of the weighted cross-entropies of the images that a fold holds out."""
    train, held = fold
    estimator = fit_pipeline(NAME, parameters, features[train], labels[train], seed, weights[train])
    logs = estimator.predict_log_proba(features[held])
    return float(-(weights[held] * logs[np.arange(len(held)), labels[held]]).sum())
