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

FOLDS = 5
KERNEL_IMAGES = 8192
"""Up to so many images the distances between all pairs are held, in 0.5 GB; beyond, each SVM computes its own."""
_ATTEMPTS = 10
_ITERATIONS = 1_000_000  # both linear solvers end by themselves long before


def prepare(name: str, features: Array) -> Array:
    """Features in the number format that a probe computes in."""
    return features.astype(np.float32 if name == "knn" else np.float64)


def divide(labels: Labels, groups: NDArray[np.str_] | None, seed: int, where: str) -> list[Fold]:
    """Stratified folds, 5 or as many as the smallest class has images (groups, where there are any), each of whose
    training parts has every class. No group is on both sides of a fold.

    Raises DataError that begins with `where` if groups leave no such folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    units = list(range(len(labels))) if groups is None else groups.tolist()
    sizes = [len({units[place] for place in np.flatnonzero(labels == label)}) for label in np.unique(labels)]
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    for count in range(min(FOLDS, *sizes), 1, -1):
        for attempt in range(_ATTEMPTS):  # groups are dealt out greedily, so a class may fall on one side
            state = derive_seed(seed, "folds", count, attempt) % 2**32
            folds: list[Fold] = list(
                kind(count, shuffle=True, random_state=state).split(labels, labels, None if groups is None else units)
            )
            if all(len(np.unique(labels[train])) == len(sizes) and len(held) for train, held in folds):
                return folds
    raise DataError(
        f"{where}: the groups of train leave no two folds that both have every class; give the images of the rarest "
        "class more groups"
    )


def choose_parameters(
    name: str, features: Array, labels: Labels, folds: Sequence[Fold], seed: int
) -> tuple[Parameters, int]:
    """The parameters with which most images are right when held out, and how many that are; the strongest
    regularisation among equals. The scaler sees nothing of what is held out."""
    from sklearn.preprocessing import StandardScaler

    candidates = list_candidates(name, features, min(len(train) for train, _ in folds))
    right = np.zeros(len(candidates), dtype=np.int64)
    for train, held in folds:
        scaler = StandardScaler().fit(features[train])
        near, far = scaler.transform(features[train]), scaler.transform(features[held])
        right += _count_right(name, candidates, (near, labels[train]), (far, labels[held]), seed)
    best = int(right.argmax())  # the first of equals
    return candidates[best], int(right[best])


def list_candidates(name: str, features: Array, images: int) -> list[Parameters]:
    """The parameters to choose from when `images` are fitted to, the strongest regularisation first.

    Products of standardised features grow with their number d, so C of the linear ones goes by powers of ten around
    1/d, and gamma is 1/4, 1 and 4 times 1/d, constant features not counted, which is what scikit-learn calls scale.
    """
    varying = max(1, int((features != features[0]).any(axis=0).sum()))
    around = -round(math.log10(varying))
    match name:
        case "svm":
            return [{"C": 10.0 ** (around + power)} for power in range(-2, 2)]
        case "logistic":
            return [{"C": 10.0 ** (around + power)} for power in range(-2, 4)]
        case "rbf":
            return [{"C": cost, "gamma": times / varying} for cost in (0.1, 1.0, 10.0, 100.0) for times in (0.25, 1, 4)]
        case _:
            return [{"n_neighbors": count} for count in (25, 15, 9, 5, 3, 1) if count <= images]


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

    scaler, classifier = StandardScaler(), _build(name, parameters, seed)
    values, basis = _rotate(name, scaler.fit(features, sample_weight=weights).transform(features))
    weighted = {} if weights is None else {"sample_weight": weights}
    classifier.fit(values, labels, **weighted)
    if basis is not None:
        classifier.coef_ = classifier.coef_ @ basis.T
        classifier.n_features_in_ = len(basis)
    return Pipeline([("scaler", scaler), ("classifier", classifier)])


def _build(name: str, parameters: Parameters, seed: int) -> Any:
    state = derive_seed(seed, name) % 2**32
    match name:
        case "svm":
            from sklearn.svm import LinearSVC

            return LinearSVC(dual=False, max_iter=_ITERATIONS, random_state=state, **parameters)
        case "logistic":
            from sklearn.linear_model import LogisticRegression

            return LogisticRegression(tol=1e-6, max_iter=_ITERATIONS, random_state=state, **parameters)
        case "rbf":
            from sklearn.svm import SVC

            return SVC(kernel="rbf", random_state=state, **parameters)
        case _:
            from sklearn.neighbors import KNeighborsClassifier

            return KNeighborsClassifier(algorithm="brute", **parameters)


def _count_right(
    name: str, candidates: Sequence[Parameters], fitted: tuple[Array, Labels], held: tuple[Array, Labels], seed: int
) -> NDArray[np.int64]:
    """How many of the held-out images each candidate gets right."""
    (near, labels), (far, wanted) = fitted, held
    if name == "rbf" and len(near) <= KERNEL_IMAGES:
        return _count_right_rbf(candidates, fitted, held)
    near, basis = _rotate(name, near)
    far = far if basis is None else far @ basis
    guesses = [_build(name, parameters, seed).fit(near, labels).predict(far) for parameters in candidates]
    return np.array([(guess == wanted).sum() for guess in guesses])


def _count_right_rbf(
    candidates: Sequence[Parameters], fitted: tuple[Array, Labels], held: tuple[Array, Labels]
) -> NDArray[np.int64]:
    """The same from distances that are computed once: some ten times as fast as an SVM that computes its own."""
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.svm import SVC

    (near, labels), (far, wanted) = fitted, held
    within, across = euclidean_distances(near, squared=True), euclidean_distances(far, near, squared=True)
    right = []
    for parameters in candidates:
        classifier = SVC(kernel="precomputed", C=parameters["C"])
        classifier.fit(np.exp(-parameters["gamma"] * within), labels)
        right.append((classifier.predict(np.exp(-parameters["gamma"] * across)) == wanted).sum())
    return np.array(right)


def _rotate(name: str, values: Array) -> tuple[Array, Array | None]:
    """The values in coordinates of the space that the images span, and the basis (d, n) of it, where that makes a
    linear classifier faster. Its L2 penalty is the same in both, and its coefficients lie in that space: it answers
    alike."""
    images, dimensions = values.shape
    if name not in ("svm", "logistic") or dimensions <= 2 * images:
        return values, None
    basis, coordinates = np.linalg.qr(values.T)
    return coordinates.T, basis
