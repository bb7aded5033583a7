"""Cross-validation and the classifiers of probes. Imports scikit-learn, which is slow to import."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from ftcli.errors import DataError
from ftcli.runtime import derive_seed

Array = NDArray[Any]
Labels = NDArray[np.int64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Indices of the training images and of the held-out images."""
Parameters = Mapping[str, float | int]

MAX_FOLDS = 5
MAX_KERNEL_IMAGES = 8192
"""Largest training set whose kernel matrix is computed once and shared by all candidates: 0.5 GB."""
_MAX_ATTEMPTS = 10
_MAX_ITERATIONS = 1_000_000  # both linear solvers converge long before


def make_folds(labels: Labels, groups: NDArray[np.str_] | None, seed: int, location: str) -> list[Fold]:
    """Return stratified folds, each of whose training parts has every class; no group is on both sides of a fold.

    There are 5, or as many as the smallest class has images (with `groups`: groups). Raises DataError if the groups
    allow no such folds.
    """
    group_ids = list(range(len(labels))) if groups is None else groups.tolist()
    class_sizes = [len({group_ids[index] for index in np.flatnonzero(labels == label)}) for label in np.unique(labels)]
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    for num_folds in range(min(MAX_FOLDS, *class_sizes), 1, -1):
        for attempt in range(_MAX_ATTEMPTS):  # StratifiedGroupKFold is greedy: a class may end up on one side
            random_state = derive_seed(seed, "folds", num_folds, attempt) % 2**32
            folds: list[Fold] = list(
                splitter(num_folds, shuffle=True, random_state=random_state).split(
                    labels, labels, None if groups is None else group_ids
                )
            )
            if all(len(np.unique(labels[train])) == len(class_sizes) and len(held_out) for train, held_out in folds):
                return folds
    raise DataError(
        f"{location}: the groups of train allow no 2 folds that both have every class; split the images of the rarest "
        "class into more groups"
    )


def grid_search(name: str, features: Array, labels: Labels, folds: Sequence[Fold], seed: int) -> tuple[Parameters, int]:
    """Return the parameters with the most correct held-out images, and their number; of equals, the strongest penalty.

    All candidates share the scaled features of a fold, their projection or their distances. GridSearchCV chooses the
    same parameters and repeats this work for each candidate: it takes 1.1 to 2.6 times as long, up to 5.5 times for
    linear probes with projected features, and 7 to 18 times for the RBF kernel.
    """
    candidates = param_grid(name, features, min(len(train) for train, _ in folds))
    num_correct = np.zeros(len(candidates), dtype=np.int64)
    for train, held_out in folds:
        scaler = StandardScaler().fit(features[train])
        x_train, x_test = scaler.transform(features[train]), scaler.transform(features[held_out])
        if name == "rbf" and len(train) <= MAX_KERNEL_IMAGES:
            predictions = _predict_rbf(candidates, x_train, labels[train], x_test)
        else:
            x_train, basis = _project_to_span(name, x_train)
            x_test = x_test if basis is None else x_test @ basis
            classifiers = [create_classifier(name, parameters, seed) for parameters in candidates]
            predictions = [classifier.fit(x_train, labels[train]).predict(x_test) for classifier in classifiers]
        num_correct += [(predicted == labels[held_out]).sum() for predicted in predictions]
    best = int(num_correct.argmax())
    return candidates[best], int(num_correct[best])


def _predict_rbf(candidates: Sequence[Parameters], x_train: Array, y_train: Labels, x_test: Array) -> list[Labels]:
    """Return the predictions of an SVM for each candidate, from distances that are computed once."""
    train_distances = euclidean_distances(x_train, squared=True)
    test_distances = euclidean_distances(x_test, x_train, squared=True)
    predictions = []
    for parameters in candidates:
        classifier = SVC(kernel="precomputed", C=parameters["C"])
        classifier.fit(np.exp(-parameters["gamma"] * train_distances), y_train)
        predictions.append(classifier.predict(np.exp(-parameters["gamma"] * test_distances)))
    return predictions


def param_grid(name: str, features: Array, num_images: int) -> list[Parameters]:
    """Return the candidate parameters for `num_images` training images, the strongest regularization first.

    Dot products of standardized features grow with their number d, so C of the linear probes covers powers of ten
    around 1/d, and gamma is 1/4, 1 and 4 times 1/d, scikit-learn's "scale". Constant features are not counted.
    """
    num_varying = max(1, int((features != features[0]).any(axis=0).sum()))
    exponent = -round(math.log10(num_varying))
    match name:
        case "svm":
            return [{"C": 10.0 ** (exponent + power)} for power in range(-2, 2)]
        case "logistic":
            return [{"C": 10.0 ** (exponent + power)} for power in range(-2, 4)]
        case "rbf":
            return [
                {"C": cost, "gamma": factor / num_varying}
                for cost in (0.1, 1.0, 10.0, 100.0)
                for factor in (0.25, 1, 4)
            ]
        case _:
            return [{"n_neighbors": count} for count in (25, 15, 9, 5, 3, 1) if count <= num_images]


def fit_pipeline(
    name: str,
    parameters: Parameters,
    features: Array,
    labels: Labels,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> Pipeline:
    """Return a StandardScaler and the classifier with these parameters, both fitted with sample weights."""
    scaler, classifier = StandardScaler(), create_classifier(name, parameters, seed)
    values, basis = _project_to_span(name, scaler.fit(features, sample_weight=weights).transform(features))
    weighted = {} if weights is None else {"sample_weight": weights}
    classifier.fit(values, labels, **weighted)
    if basis is not None:
        classifier.coef_ = classifier.coef_ @ basis.T
        classifier.n_features_in_ = len(basis)
    return Pipeline([("scaler", scaler), ("classifier", classifier)])


def create_classifier(name: str, parameters: Parameters, seed: int) -> Any:
    """Return the classifier of a probe, not fitted."""
    random_state = derive_seed(seed, name) % 2**32
    match name:
        case "svm":
            return LinearSVC(dual=False, max_iter=_MAX_ITERATIONS, random_state=random_state, **parameters)
        case "logistic":
            return LogisticRegression(tol=1e-6, max_iter=_MAX_ITERATIONS, random_state=random_state, **parameters)
        case "rbf":
            return SVC(kernel="rbf", random_state=random_state, **parameters)
        case _:
            return KNeighborsClassifier(algorithm="brute", **parameters)


def _project_to_span(name: str, values: Array) -> tuple[Array, Array | None]:
    """Return the values in coordinates of the span of the images, and its basis (d, n), if that makes a fit faster.

    A linear classifier predicts the same in both spaces: the L2 penalty is the same, and its coefficients are in the
    span.
    """
    num_images, num_features = values.shape
    if name not in ("svm", "logistic") or num_features <= 2 * num_images:
        return values, None
    basis, coordinates = np.linalg.qr(values.T)
    return coordinates.T, basis
