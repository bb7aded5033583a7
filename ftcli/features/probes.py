"""Probes: simple classifiers fitted to the features of a frozen network, and the linear heads made from them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftcli.errors import DataError, RecipeError, RunError, format_list, suggest
from ftcli.results import format_count
from ftcli.results.extraction import ProbeScore
from ftcli.statistics import wilson_interval

if TYPE_CHECKING:
    from ftcli.features.probe_search import Fold, Parameters

PROBES: tuple[str, ...] = ("svm", "rbf", "logistic", "knn")
"""A linear SVM, an SVM with an RBF kernel, logistic regression, and k nearest neighbours."""


@dataclass(frozen=True)
class FeatureSet:
    """The features (n, d) of n images with their labels and splits.

    Images of one group stay in one fold of cross-validation; None if no image has a group.
    """

    features: NDArray[Any]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class Probe:
    """A fitted classifier, a scikit-learn Pipeline that begins with a StandardScaler, and its accuracies."""

    score: ProbeScore
    estimator: Any
    classes: tuple[str, ...]

    def predict(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """Return the predicted labels, indices of `classes`, of features (n, d)."""
        labels: NDArray[np.int64] = self.estimator.predict(cast_features(self.score.name, features)).astype(np.int64)
        return labels


def check_probe_name(name: str, option: str) -> None:
    """Raise RecipeError for an unknown probe."""
    if name not in PROBES:
        raise RecipeError(f"{option}: unknown probe {name!r}; {suggest(name, PROBES)}")


def check_probe_labels(
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    classes: Sequence[str],
    option: str,
    groups: NDArray[np.str_] | None = None,
) -> None:
    """Raise DataError with every reason why no probe can be fitted: no train split, one class, too small classes."""
    is_train = splits == "train"
    if not is_train.any():
        available = ", ".join(dict.fromkeys(splits.tolist())) or "none"
        raise DataError(
            f"{option}: there is no train split to fit on (splits: {available}); put images in train/<class>/ folders, "
            "or use a recipe that splits them"
        )
    images_per_class = Counter(labels[is_train].tolist())
    if len(images_per_class) == 1:
        raise DataError(
            f"{option}: all {len(labels[is_train])} images of train have the class {classes[labels[is_train][0]]}, and "
            "at least 2 classes are needed; add a folder with images of another class to train"
        )
    errors = []
    too_few = [
        f"{name} ({images_per_class[label]})" for label, name in enumerate(classes) if images_per_class[label] < 2
    ]
    if too_few:
        has, folders, these = _pluralize(len(too_few))
        errors.append(
            f"{option}: cross-validation needs at least 2 images of each class in train, and {len(too_few)} of "
            f"{len(classes)} classes {has} fewer: {format_list(too_few, 6)}; add images to {folders} in train, or "
            f"remove {these}"
        )
    groups_by_class: dict[int, set[str]] = {}
    if groups is not None:
        for label in sorted(images_per_class):
            groups_by_class[label] = set(groups[is_train & (labels == label)].tolist())
    single_group = [
        f"{classes[label]} ({min(class_groups)})"
        for label, class_groups in groups_by_class.items()
        if len(class_groups) == 1 < images_per_class[label]
    ]
    if single_group:
        has, _, these = _pluralize(len(single_group))
        errors.append(
            f"{option}: cross-validation needs at least 2 groups of each class in train, and {len(single_group)} of "
            f"{len(classes)} classes {has} only one: {format_list(single_group, 6)}; add images of other groups, or "
            f"remove {these}"
        )
    if errors:
        raise DataError(*errors)


def cast_features(name: str, features: NDArray[Any]) -> NDArray[Any]:
    """Return features in the number format that a probe computes in."""
    return features.astype(np.float32 if name == "knn" else np.float64)


def fit_probe(name: str, layer: str, feature_set: FeatureSet, classes: Sequence[str], seed: int) -> Probe:
    """Fit a probe to the standardized features of train and measure its accuracy on val and test.

    Its parameters have the best accuracy in stratified cross-validation within train, in up to 5 folds. The same
    features and seed give the same probe. Call `check_probe_labels` first. Raises RunError for features that are not
    finite, DataError if the groups allow no folds.
    """
    from ftcli.features.probe_search import fit_pipeline, grid_search, make_folds  # slow to import

    start = time.monotonic()
    _check_finite(name, layer, feature_set)
    is_train = feature_set.splits == "train"
    features, labels = cast_features(name, feature_set.features[is_train]), feature_set.labels[is_train]
    groups = None if feature_set.groups is None else feature_set.groups[is_train]
    folds = make_folds(labels, groups, seed, f"--probe {name}")
    parameters, num_correct = grid_search(name, features, labels, folds, seed)
    estimator = fit_pipeline(name, parameters, features, labels, seed)
    val, test = (_count_correct(name, estimator, feature_set, split) for split in ("val", "test"))
    score = ProbeScore(
        name=name,
        layer=layer,
        parameters=dict(parameters),
        folds=len(folds),
        cv_accuracy=num_correct / len(labels),
        train_images=len(labels),
        val_accuracy=val[0] / val[1] if val[1] else None,
        test_accuracy=test[0] / test[1] if test[1] else None,
        test_low=wilson_interval(*test)[0] if test[1] else None,
        test_high=wilson_interval(*test)[1] if test[1] else None,
        test_images=test[1],
        seconds=round(time.monotonic() - start, 3),
        test_majority=_compute_majority_accuracy(labels, feature_set),
    )
    return Probe(score, estimator, tuple(classes))


def probe_to_linear(probe: Probe, in_features: int) -> tuple[Tensor, Tensor]:
    """Return weight (classes, in_features) and bias (classes), float32, of the linear layer equal to a linear probe.

    The outputs of logistic regression are logits, those of an SVM its margins. A probe of 2 classes has one margin m;
    the layer's outputs are then -m/2 and m/2, so that their softmax is the probe's.
    """
    return _estimator_to_linear(probe.estimator, len(probe.classes), in_features)


@dataclass(frozen=True)
class ProbeData:
    """The training data of a linear head: features (n, d), labels of all `num_classes` classes, and sample weights."""

    features: NDArray[Any]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.str_] | None
    num_classes: int


@dataclass(frozen=True)
class LogisticHead:
    """A linear layer fitted by logistic regression: weight (classes, d) and bias (classes), float32.

    C is the inverse strength of the L2 penalty, `held_out_loss` the mean cross-entropy by which it was chosen.
    """

    weight: Tensor
    bias: Tensor
    C: float
    held_out_loss: float
    folds: int


def fit_logistic_head(data: ProbeData, seed: int, location: str) -> LogisticHead:
    """Fit a linear layer by L2-regularized logistic regression on standardized features; the bias has no penalty.

    C rises by powers of ten while the weighted cross-entropy of held-out images falls, in stratified cross-validation
    in up to 5 folds. Only relative sample weights matter. The same data and seed give the same layer. Raises RunError
    for features that are not finite, DataError if the groups allow no folds.
    """
    from ftcli.features.probe_search import fit_pipeline, make_folds, param_grid  # slow to import

    if num_nonfinite := int((~np.isfinite(data.features).all(axis=1)).sum()):
        raise RunError(
            f"{location}: the features of {num_nonfinite} of {len(data.features)} training images are not finite; "
            "check the weights, or set precision: float32"
        )
    features, labels = cast_features("logistic", data.features), data.labels
    weights = data.weights / data.weights.mean()
    folds = make_folds(labels, data.groups, seed, location)
    best_parameters: Parameters = {}
    best_loss = math.inf
    for parameters in param_grid("logistic", features, min(len(train) for train, _ in folds)):
        loss = sum(_compute_held_out_loss(features, labels, weights, parameters, fold, seed) for fold in folds)
        if loss >= best_loss:
            break  # not a grid search: the loss has one minimum, and the fits with larger C take longest
        best_parameters, best_loss = parameters, loss
    estimator = fit_pipeline("logistic", best_parameters, features, labels, seed, weights)
    weight, bias = _estimator_to_linear(estimator, data.num_classes, features.shape[1])
    return LogisticHead(weight, bias, float(best_parameters["C"]), best_loss / len(labels), len(folds))


def _compute_held_out_loss(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    parameters: Parameters,
    fold: Fold,
    seed: int,
) -> float:
    """Return the sum of the weighted cross-entropies of a fold's held-out images."""
    from ftcli.features.probe_search import fit_pipeline

    train, held_out = fold
    estimator = fit_pipeline("logistic", parameters, features[train], labels[train], seed, weights[train])
    log_probabilities = estimator.predict_log_proba(features[held_out])
    return float(-(weights[held_out] * log_probabilities[np.arange(len(held_out)), labels[held_out]]).sum())


def _estimator_to_linear(estimator: Any, num_classes: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Fold the StandardScaler into the linear classifier after it, in float64, and round once."""
    scaler, classifier = estimator.named_steps["scaler"], estimator.named_steps["classifier"]
    assert classifier.classes_.tolist() == list(range(num_classes))  # train has every class: check_probe_labels
    weight = np.asarray(classifier.coef_, dtype=np.float64) / scaler.scale_
    assert weight.shape[1] == in_features
    bias = np.asarray(classifier.intercept_, dtype=np.float64) - weight @ scaler.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _count_correct(name: str, estimator: Any, feature_set: FeatureSet, split: str) -> tuple[int, int]:
    """Return the number of correct images and of all images of a split."""
    in_split = feature_set.splits == split
    if not in_split.any():
        return 0, 0
    is_correct = estimator.predict(cast_features(name, feature_set.features[in_split])) == feature_set.labels[in_split]
    return int(is_correct.sum()), len(is_correct)


def _compute_majority_accuracy(train_labels: NDArray[np.int64], feature_set: FeatureSet) -> float | None:
    """Return the accuracy on test of always predicting the most frequent class of train."""
    test_labels = feature_set.labels[feature_set.splits == "test"]
    return float((test_labels == np.bincount(train_labels).argmax()).mean()) if len(test_labels) else None


def _check_finite(name: str, layer: str, feature_set: FeatureSet) -> None:
    num_nonfinite = sum(not np.isfinite(row).all() for row in feature_set.features)
    if num_nonfinite:
        raise RunError(
            f"--probe {name}: the features of {layer} are not finite for {num_nonfinite} of "
            f"{format_count(len(feature_set.features), 'image')}; choose an earlier layer, or check the weights"
        )


def _pluralize(count: int) -> tuple[str, str, str]:
    return ("has", "its folder", "this class") if count == 1 else ("have", "their folders", "these classes")
