"""A linear head that is solved for: logistic regression on the features, to its optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ftcli.errors import RunError
from ftcli.features.folding import estimator_to_linear
from ftcli.features.tuning import Fold, Parameters, cast_features, fit_pipeline, make_folds, param_grid

PROBE_NAME = "logistic"


@dataclass(frozen=True)
class ProbeData:
    """What a head is solved from: the features (n, d) of the training images, their labels, int64, which take in every
    one of `classes` classes, how much each weighs, and the groups that stay together in cross-validation, None where
    there are none."""

    features: NDArray[Any]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.str_] | None
    num_classes: int


@dataclass(frozen=True)
class LogisticHead:
    """The linear layer that was found, weight (classes, d) and bias (classes), float32, with the strength C of its
    fit to the images against its L2 penalty, and the held-out cross-entropy, in nats, that C was chosen by."""

    weight: Tensor
    bias: Tensor
    C: float
    held_out_loss: float
    folds: int


def fit_logistic_head(data: ProbeData, seed: int, location: str) -> LogisticHead:
    """The linear layer that minimises the weighted cross-entropy of the training images plus an L2 penalty on its
    weights, as they act on standardised features; the bias is free.

    C rises by powers of ten as long as the weighted cross-entropy of held-out images falls, in stratified
    cross-validation in up to 5 folds with the images of a group on the same side. Only weights relative to one another
    count. The same lesson and seed give the same layer.

    Raises RunError that begins with `where` for features that are not finite, DataError where groups leave no folds
    that have every class.
    """
    if num_nonfinite := int((~np.isfinite(data.features).all(axis=1)).sum()):
        raise RunError(
            f"{location}: what the frozen layers give is not finite for {num_nonfinite} of {len(data.features)} training "
            "images; check the weights, or set precision: float32"
        )
    features, labels = cast_features(PROBE_NAME, data.features), data.labels
    weights = data.weights / data.weights.mean()
    folds = make_folds(labels, data.groups, seed, location)
    best_parameters: Parameters = {}
    best_loss = math.inf
    for parameters in param_grid(PROBE_NAME, features, min(len(train) for train, _ in folds)):
        loss = sum(_compute_held_out_loss(features, labels, weights, parameters, fold, seed) for fold in folds)
        if loss >= best_loss:
            break  # the loss has one valley, and the fits beyond it take the longest
        best_parameters, best_loss = parameters, loss
    estimator = fit_pipeline(PROBE_NAME, best_parameters, features, labels, seed, weights)
    weight, bias = estimator_to_linear(estimator, data.num_classes, features.shape[1])
    return LogisticHead(weight, bias, float(best_parameters["C"]), best_loss / len(labels), len(folds))


def _compute_held_out_loss(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    parameters: Parameters,
    fold: Fold,
    seed: int,
) -> float:
    """The sum of the weighted cross-entropies of the images that a fold holds out."""
    train, held_out = fold
    estimator = fit_pipeline(PROBE_NAME, parameters, features[train], labels[train], seed, weights[train])
    log_probabilities = estimator.predict_log_proba(features[held_out])
    return float(-(weights[held_out] * log_probabilities[np.arange(len(held_out)), labels[held_out]]).sum())
