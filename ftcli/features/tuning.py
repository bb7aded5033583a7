"""The parameters of a simple classifier, chosen by cross-validation inside the images that it is fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftcli.errors import DataError
from ftcli.runtime import derive_seed

Array = NDArray[Any]
Labels = NDArray[np.int64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The places of what a classifier is fitted to, and of what is held out."""
Parameters = Mapping[str, float | int]

MAX_FOLDS = 5
MAX_KERNEL_IMAGES = 8192
"""Up to so many images the distances between all pairs are held, in 0.5 GB; beyond, each SVM computes its own."""
_MAX_ATTEMPTS = 10
_MAX_ITERATIONS = 1_000_000  # both linear solvers end by themselves long before


def cast_features(name: str, features: Array) -> Array:
    """Features in the number format that a probe computes in."""
    return features.astype(np.float32 if name == "knn" else np.float64)


def make_folds(labels: Labels, groups: NDArray[np.str_] | None, seed: int, location: str) -> list[Fold]:
    """Stratified folds, 5 or as many as the smallest class has images (groups, where there are any), each of whose
    training parts has every class. No group is on both sides of a fold.

    Raises DataError that begins with `where` if groups leave no such folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    group_ids = list(range(len(labels))) if groups is None else groups.tolist()
    class_sizes = [len({group_ids[index] for index in np.flatnonzero(labels == label)}) for label in np.unique(labels)]
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    for num_folds in range(min(MAX_FOLDS, *class_sizes), 1, -1):
        for attempt in range(_MAX_ATTEMPTS):  # groups are dealt out greedily, so a class may fall on one side
            random_state = derive_seed(seed, "folds", num_folds, attempt) % 2**32
            folds: list[Fold] = list(
                splitter(num_folds, shuffle=True, random_state=random_state).split(
                    labels, labels, None if groups is None else group_ids
                )
            )
            if all(len(np.unique(labels[train])) == len(class_sizes) and len(held_out) for train, held_out in folds):
                return folds
    raise DataError(
        f"{location}: the groups of train leave no two folds that both have every class; give the images of the rarest "
        "class more groups"
    )


def grid_search(name: str, features: Array, labels: Labels, folds: Sequence[Fold], seed: int) -> tuple[Parameters, int]:
    """The parameters with which most images are right when held out, and how many that are; the strongest
    regularisation among equals. The scaler sees nothing of what is held out."""
    from sklearn.preprocessing import StandardScaler

    candidates = param_grid(name, features, min(len(train) for train, _ in folds))
    num_correct = np.zeros(len(candidates), dtype=np.int64)
    for train, held_out in folds:
        scaler = StandardScaler().fit(features[train])
        x_train, x_test = scaler.transform(features[train]), scaler.transform(features[held_out])
        num_correct += _count_correct(name, candidates, (x_train, labels[train]), (x_test, labels[held_out]), seed)
    best = int(num_correct.argmax())  # the first of equals
    return candidates[best], int(num_correct[best])


def param_grid(name: str, features: Array, num_images: int) -> list[Parameters]:
    """The parameters to choose from when `images` are fitted to, the strongest regularisation first.

    Products of standardised features grow with their number d, so C of the linear ones goes by powers of ten around
    1/d, and gamma is 1/4, 1 and 4 times 1/d, constant features not counted, which is what scikit-learn calls scale.
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
            return [
                {"n_neighbors": num_neighbors} for num_neighbors in (25, 15, 9, 5, 3, 1) if num_neighbors <= num_images
            ]


def fit_pipeline(
    name: str,
    parameters: Parameters,
    features: Array,
    labels: Labels,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> Any:
    """The scaler and the classifier with these parameters, fitted to all the features, as a scikit-learn Pipeline.

    `weights` say how often each image counts (None: once), in both.
    """
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    scaler, classifier = StandardScaler(), _create_classifier(name, parameters, seed)
    values, basis = _project_to_span(name, scaler.fit(features, sample_weight=weights).transform(features))
    weighted = {} if weights is None else {"sample_weight": weights}
    classifier.fit(values, labels, **weighted)
    if basis is not None:
        classifier.coef_ = classifier.coef_ @ basis.T
        classifier.n_features_in_ = len(basis)
    return Pipeline([("scaler", scaler), ("classifier", classifier)])


def _create_classifier(name: str, parameters: Parameters, seed: int) -> Any:
    random_state = derive_seed(seed, name) % 2**32
    match name:
        case "svm":
            from sklearn.svm import LinearSVC

            return LinearSVC(dual=False, max_iter=_MAX_ITERATIONS, random_state=random_state, **parameters)
        case "logistic":
            from sklearn.linear_model import LogisticRegression

            return LogisticRegression(tol=1e-6, max_iter=_MAX_ITERATIONS, random_state=random_state, **parameters)
        case "rbf":
            from sklearn.svm import SVC

            return SVC(kernel="rbf", random_state=random_state, **parameters)
        case _:
            from sklearn.neighbors import KNeighborsClassifier

            return KNeighborsClassifier(algorithm="brute", **parameters)


def _count_correct(
    name: str,
    candidates: Sequence[Parameters],
    train_data: tuple[Array, Labels],
    test_data: tuple[Array, Labels],
    seed: int,
) -> NDArray[np.int64]:
    """How many of the held-out images each candidate gets right."""
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    if name == "rbf" and len(x_train) <= MAX_KERNEL_IMAGES:
        return _count_correct_rbf(candidates, train_data, test_data)
    x_train, basis = _project_to_span(name, x_train)
    x_test = x_test if basis is None else x_test @ basis
    predictions = [
        _create_classifier(name, parameters, seed).fit(x_train, y_train).predict(x_test) for parameters in candidates
    ]
    return np.array([(predicted == y_test).sum() for predicted in predictions])


def _count_correct_rbf(
    candidates: Sequence[Parameters], train_data: tuple[Array, Labels], test_data: tuple[Array, Labels]
) -> NDArray[np.int64]:
    """The same from distances that are computed once: some ten times as fast as an SVM that computes its own."""
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.svm import SVC

    (x_train, y_train), (x_test, y_test) = train_data, test_data
    train_distances, test_distances = (
        euclidean_distances(x_train, squared=True),
        euclidean_distances(x_test, x_train, squared=True),
    )
    num_correct = []
    for parameters in candidates:
        classifier = SVC(kernel="precomputed", C=parameters["C"])
        classifier.fit(np.exp(-parameters["gamma"] * train_distances), y_train)
        num_correct.append((classifier.predict(np.exp(-parameters["gamma"] * test_distances)) == y_test).sum())
    return np.array(num_correct)


def _project_to_span(name: str, values: Array) -> tuple[Array, Array | None]:
    """The values in coordinates of the space that the images span, and the basis (d, n) of it, where that makes a
    linear classifier faster. Its L2 penalty is the same in both, and its coefficients lie in that space: it answers
    alike."""
    num_images, num_features = values.shape
    if name not in ("svm", "logistic") or num_features <= 2 * num_images:
        return values, None
    basis, coordinates = np.linalg.qr(values.T)
    return coordinates.T, basis
