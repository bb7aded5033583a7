"""Simple classifiers on the features of a layer: what there is to learn from them without training the network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli.errors import DataError, RecipeError, RunError, format_list, suggest
from ftcli.features.tuning import cast_features, fit_pipeline, grid_search, make_folds
from ftcli.results.extraction import ProbeScore
from ftcli.statistics import wilson_interval

PROBES: tuple[str, ...] = ("svm", "rbf", "logistic", "knn")
"""A linear SVM, an SVM with a Gaussian kernel, logistic regression, and the k nearest neighbours."""


@dataclass(frozen=True)
class FeatureSet:
    """The features (n, d) of n images, their labels, int64, their splits, and the groups that stay together in
    cross-validation, where there are any: an image that is alone has a group of its own."""

    features: NDArray[Any]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class Probe:
    """A classifier that was fitted on train alone, a scikit-learn Pipeline of a StandardScaler and itself, and how well
    it does."""

    score: ProbeScore
    estimator: Any
    classes: tuple[str, ...]

    def predict(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """The labels, places in `classes`, that features (n, d) are given."""
        labels: NDArray[np.int64] = self.estimator.predict(cast_features(self.score.name, features)).astype(np.int64)
        return labels


def check_probe_name(name: str, option: str) -> None:
    """Raise RecipeError that begins with `option` for a name that no probe has."""
    if name not in PROBES:
        raise RecipeError(f"{option} {name}: there is no such probe; {suggest(name, PROBES)}")


def check_probe_labels(
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    classes: Sequence[str],
    option: str,
    groups: NDArray[np.str_] | None = None,
) -> None:
    """Raise DataError with every fault, each beginning with `option`, of labels on which no probe can be fitted: no
    train split, a single class, a class with too few images or groups to be on both sides of cross-validation.

    No features are needed yet, so it can be asked before they are computed.
    """
    is_train = splits == "train"
    if not is_train.any():
        available = ", ".join(dict.fromkeys(splits.tolist())) or "none"
        raise DataError(
            f"{option}: there is no train split to fit on (splits: {available}); put images in train/<class>/ folders, or "
            "give a recipe that splits them"
        )
    images_per_class = Counter(labels[is_train].tolist())
    if len(images_per_class) == 1:
        raise DataError(
            f"{option}: all {len(labels[is_train])} images of train are of the class {classes[next(iter(images_per_class))]}, and a "
            "probe tells at least two apart; add a folder with images of another class to train"
        )
    errors = []
    if too_few := [
        f"{name} ({images_per_class[label]})" for label, name in enumerate(classes) if images_per_class[label] < 2
    ]:
        has, folders, them = _pluralize(len(too_few))
        errors.append(
            f"{option}: cross-validation needs at least 2 images of each class in train, and {len(too_few)} of "
            f"{len(classes)} classes {has} fewer: {format_list(too_few, 6)}; add images to {folders} in train, or take {them} "
            "out"
        )
    if groups is not None:
        groups_by_class = {
            label: set(groups[is_train & (labels == label)].tolist()) for label in sorted(images_per_class)
        }
        single_group = [
            f"{classes[label]} ({min(class_groups)})"
            for label, class_groups in groups_by_class.items()
            if len(class_groups) == 1 < images_per_class[label]
        ]
        has, _, them = _pluralize(len(single_group))
        if single_group:
            errors.append(
                f"{option}: cross-validation needs at least 2 groups of each class in train, and {len(single_group)} of "
                f"{len(classes)} classes {has} a single one: {format_list(single_group, 6)}; add images of other groups, or take "
                f"{them} out"
            )
    if errors:
        raise DataError(*errors)


def fit_probe(name: str, layer: str, feature_set: FeatureSet, classes: Sequence[str], seed: int) -> Probe:
    """Fit a probe to the images of train, whose features are standardised, and measure it on val and test.

    Its parameters are those with the best accuracy in stratified cross-validation inside train, in up to 5 folds; the
    strongest regularisation among equals. The scaler is fitted anew for each fold; images of a group are on the same
    side. The same codes and seed give the same probe. `codes` are such as `check_probe_labels` lets pass.

    Raises RunError for features that are not finite, DataError where groups leave no folds that have every class.
    """
    start = time.monotonic()
    _check_finite(name, layer, feature_set)
    is_train = feature_set.splits == "train"
    features, labels = cast_features(name, feature_set.features[is_train]), feature_set.labels[is_train]
    folds = make_folds(
        labels, None if feature_set.groups is None else feature_set.groups[is_train], seed, f"--probe {name}"
    )
    parameters, num_correct = grid_search(name, features, labels, folds, seed)
    estimator = fit_pipeline(name, parameters, features, labels, seed)
    val, test = (_count_correct_in_split(name, estimator, feature_set, split) for split in ("val", "test"))
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


def _count_correct_in_split(name: str, estimator: Any, feature_set: FeatureSet, split: str) -> tuple[int, int]:
    """How many images of a split are right, and how many there are."""
    in_split = feature_set.splits == split
    if not in_split.any():
        return 0, 0
    is_correct = estimator.predict(cast_features(name, feature_set.features[in_split])) == feature_set.labels[in_split]
    return int(is_correct.sum()), len(is_correct)


def _compute_majority_accuracy(train: NDArray[np.int64], feature_set: FeatureSet) -> float | None:
    """The accuracy on test of always answering with the class that train has most of; the first among equals."""
    test = feature_set.labels[feature_set.splits == "test"]
    return float((test == np.bincount(train).argmax()).mean()) if len(test) else None


def _check_finite(name: str, layer: str, feature_set: FeatureSet) -> None:
    num_nonfinite = sum(not np.isfinite(row).all() for row in feature_set.features)
    if num_nonfinite:
        raise RunError(
            f"--probe {name}: the features of {layer} are not finite for {num_nonfinite} of {len(feature_set.features)} images; "
            "take a layer before it, or check the weights"
        )


def _pluralize(count: int) -> tuple[str, str, str]:
    return ("has", "its folder", "the class") if count == 1 else ("have", "their folders", "these classes")
