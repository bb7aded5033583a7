"""Simple classifiers on the features of a layer: what there is to learn from them without training the network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli.errors import DataError, RecipeError, RunError, suggest
from ftcli.features.tuning import choose_parameters, divide, fit_pipeline, prepare
from ftcli.results.extraction import ProbeScore
from ftcli.statistics import wilson

PROBES: tuple[str, ...] = ("svm", "rbf", "logistic", "knn")
"""A linear SVM, an SVM with a Gaussian kernel, logistic regression, and the k nearest neighbours."""


@dataclass(frozen=True)
class Codes:
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
        labels: NDArray[np.int64] = self.estimator.predict(prepare(self.score.name, features)).astype(np.int64)
        return labels


def check_probe(name: str, option: str) -> None:
    """Raise RecipeError that begins with `option` for a name that no probe has."""
    if name not in PROBES:
        raise RecipeError(f"{option} {name}: there is no such probe; {suggest(name, PROBES)}")


def check_codes(
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
    own = splits == "train"
    if not own.any():
        there = ", ".join(dict.fromkeys(splits.tolist())) or "none"
        raise DataError(
            f"{option}: there is no train split to fit on (splits: {there}); put images in train/<class>/ folders, or "
            "give a recipe that splits them"
        )
    images = Counter(labels[own].tolist())
    if len(images) == 1:
        raise DataError(
            f"{option}: all {len(labels[own])} images of train are of the class {classes[next(iter(images))]}, and a "
            "probe tells at least two apart; add a folder with images of another class to train"
        )
    faults = []
    if few := [f"{name} ({images[label]})" for label, name in enumerate(classes) if images[label] < 2]:
        has, folders, them = _inflect(len(few))
        faults.append(
            f"{option}: cross-validation needs at least 2 images of each class in train, and {len(few)} of "
            f"{len(classes)} classes {has} fewer: {_list_some(few)}; add images to {folders} in train, or take {them} "
            "out"
        )
    if groups is not None:
        homes = {label: set(groups[own & (labels == label)].tolist()) for label in sorted(images)}
        alone = [f"{classes[label]} ({min(home)})" for label, home in homes.items() if len(home) == 1 < images[label]]
        has, _, them = _inflect(len(alone))
        if alone:
            faults.append(
                f"{option}: cross-validation needs at least 2 groups of each class in train, and {len(alone)} of "
                f"{len(classes)} classes {has} a single one: {_list_some(alone)}; add images of other groups, or take "
                f"{them} out"
            )
    if faults:
        raise DataError(*faults)


def fit_probe(name: str, layer: str, codes: Codes, classes: Sequence[str], seed: int) -> Probe:
    """Fit a probe to the images of train, whose features are standardised, and measure it on val and test.

    Its parameters are those with the best accuracy in stratified cross-validation inside train, in up to 5 folds; the
    strongest regularisation among equals. The scaler is fitted anew for each fold; images of a group are on the same
    side. The same codes and seed give the same probe. `codes` are such as `check_codes` lets pass.

    Raises RunError for features that are not finite, DataError where groups leave no folds that have every class.
    """
    began = time.monotonic()
    _check_finite(name, layer, codes)
    own = codes.splits == "train"
    features, labels = prepare(name, codes.features[own]), codes.labels[own]
    folds = divide(labels, None if codes.groups is None else codes.groups[own], seed, f"--probe {name}")
    parameters, right = choose_parameters(name, features, labels, folds, seed)
    estimator = fit_pipeline(name, parameters, features, labels, seed)
    val, test = (_measure(name, estimator, codes, split) for split in ("val", "test"))
    score = ProbeScore(
        name=name,
        layer=layer,
        parameters=dict(parameters),
        folds=len(folds),
        cv_accuracy=right / len(labels),
        train_images=len(labels),
        val_accuracy=val[0] / val[1] if val[1] else None,
        test_accuracy=test[0] / test[1] if test[1] else None,
        test_low=wilson(*test)[0] if test[1] else None,
        test_high=wilson(*test)[1] if test[1] else None,
        test_images=test[1],
        seconds=round(time.monotonic() - began, 3),
        test_majority=_measure_majority(labels, codes),
    )
    return Probe(score, estimator, tuple(classes))


def _measure(name: str, estimator: Any, codes: Codes, split: str) -> tuple[int, int]:
    """How many images of a split are right, and how many there are."""
    own = codes.splits == split
    if not own.any():
        return 0, 0
    right = estimator.predict(prepare(name, codes.features[own])) == codes.labels[own]
    return int(right.sum()), len(right)


def _measure_majority(train: NDArray[np.int64], codes: Codes) -> float | None:
    """The accuracy on test of always answering with the class that train has most of; the first among equals."""
    test = codes.labels[codes.splits == "test"]
    return float((test == np.bincount(train).argmax()).mean()) if len(test) else None


def _check_finite(name: str, layer: str, codes: Codes) -> None:
    broken = sum(not np.isfinite(row).all() for row in codes.features)
    if broken:
        raise RunError(
            f"--probe {name}: the features of {layer} are not finite for {broken} of {len(codes.features)} images; "
            "take a layer before it, or check the weights"
        )


def _inflect(count: int) -> tuple[str, str, str]:
    return ("has", "its folder", "the class") if count == 1 else ("have", "their folders", "these classes")


def _list_some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
