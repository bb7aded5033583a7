"""Probes are fitted, and their parameters chosen, inside train alone; scikit-learn says the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from ftcli.errors import DataError, RecipeError, RunError
from ftcli.features import tuning
from ftcli.features.probing import PROBES, Codes, check_codes, check_probe, fit_probe
from ftcli.features.tuning import Labels, choose_parameters, divide, fit_pipeline, list_candidates, prepare
from ftcli.statistics import wilson

NAMES = ("three", "five", "eight")


def take(count: int = 320) -> Codes:
    """Digits that are easily mistaken for one another; their 64 pixels, some of them always black, are the features."""
    digits = load_digits()
    kept = np.flatnonzero(np.isin(digits.target, (3, 5, 8)))[:count]
    labels = np.searchsorted((3, 5, 8), digits.target[kept]).astype(np.int64)
    splits = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
    return Codes(digits.data[kept].astype(np.float32), labels, splits)


@pytest.mark.parametrize("name", PROBES)
def test_the_parameters_are_the_best_in_cross_validation_inside_train(name: str) -> None:
    codes = take()
    probe = fit_probe(name, "pixels", codes, NAMES, seed=7)
    own = codes.splits == "train"
    features, labels = prepare(name, codes.features[own]), codes.labels[own]
    folds = divide(labels, None, 7, "")
    right = []
    for parameters in list_candidates(name, features, 128):
        fresh = probe.estimator.named_steps["classifier"].__class__(**{
            **probe.estimator.named_steps["classifier"].get_params(), **parameters
        })  # fmt: skip
        guesses = cross_val_predict(make_pipeline(StandardScaler(), fresh), features, labels, cv=folds)
        right.append((int((guesses == labels).sum()), parameters))
    best = max(count for count, _ in right)
    assert probe.score.parameters == next(parameters for count, parameters in right if count == best)
    assert probe.score.cv_accuracy == best / len(labels)
    assert len({count for count, _ in right}) > 2  # it makes a difference
    assert probe.score.folds == 5


@pytest.mark.parametrize("name", PROBES)
def test_val_and_test_are_measured_and_nothing_else(name: str) -> None:
    codes = take()
    probe = fit_probe(name, "pixels", codes, NAMES, seed=7)
    score = probe.score
    for split, accuracy in (("val", score.val_accuracy), ("test", score.test_accuracy)):
        own = codes.splits == split
        assert accuracy is not None
        assert accuracy == (probe.predict(codes.features[own]) == codes.labels[own]).mean()
        assert accuracy > 0.8
        right = round(accuracy * 80)
    assert (score.test_low, score.test_high) == wilson(right, 80)
    assert (score.name, score.layer, score.train_images, score.test_images) == (name, "pixels", 160, 80)
    commonest = np.bincount(codes.labels[codes.splits == "train"]).argmax()
    assert score.test_majority == (codes.labels[codes.splits == "test"] == commonest).mean()

    spoilt = codes.features.copy()
    spoilt[codes.splits != "train"] = 1e6
    labels = np.where(codes.splits == "train", codes.labels, 0)
    other = fit_probe(name, "pixels", Codes(spoilt, labels, codes.splits), NAMES, seed=7)
    assert (other.score.parameters, other.score.cv_accuracy) == (score.parameters, score.cv_accuracy)
    assert np.array_equal(other.predict(codes.features), probe.predict(codes.features))


@pytest.mark.parametrize("name", PROBES)
def test_noise_is_not_learnt(name: str) -> None:
    """What fits its own images perfectly is still wrong on half of those held out."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(200, 150)), random.integers(0, 2, 200)
    probe = fit_probe(name, "noise", Codes(features, labels, np.full(200, "train")), ("a", "b"), seed=0)
    assert 0.35 < probe.score.cv_accuracy < 0.65
    assert probe.score.val_accuracy is None
    assert probe.score.test_accuracy is probe.score.test_low is probe.score.test_majority is None
    assert probe.score.test_images == 0


def test_the_scaler_sees_nothing_of_what_is_held_out() -> None:
    """The first feature tells the class. Whoever has seen the outlier shrinks it, and goes by the second."""
    features = np.array([[place % 2, place] for place in range(8)] + [[1, 0], [1e6, 7]], dtype=np.float32)
    labels = np.array([0, 1] * 4 + [1, 1])
    fold = (np.arange(8), np.arange(8, 10))
    assert choose_parameters("knn", features, labels, [fold], seed=0)[1] == 2


def test_the_same_codes_and_seed_give_the_same_probe() -> None:
    codes = take()
    for name in ("svm", "logistic"):
        first, again = (fit_probe(name, "x", codes, NAMES, seed=3).estimator.named_steps["classifier"] for _ in "ab")
        assert first.coef_.tobytes() == again.coef_.tobytes()
    own = codes.labels[codes.splits == "train"]
    assert np.array_equal(divide(own, None, 3, "")[0][1], divide(own, None, 3, "")[0][1])
    assert not np.array_equal(divide(own, None, 3, "")[0][1], divide(own, None, 4, "")[0][1])


def test_images_of_a_group_stay_together() -> None:
    """Near copies with labels at random: only who has seen a copy knows its label."""
    random = np.random.default_rng(1)
    features = random.normal(size=(40, 1, 30)).repeat(5, axis=1) + random.normal(size=(40, 5, 30)) / 50
    labels, groups = random.integers(0, 2, 40).repeat(5), np.arange(40).astype(str).repeat(5)
    codes = Codes(features.reshape(200, 30), labels, np.full(200, "train"))
    assert fit_probe("knn", "x", codes, ("a", "b"), seed=0).score.cv_accuracy > 0.95
    assert fit_probe("knn", "x", replace(codes, groups=groups), ("a", "b"), seed=0).score.cv_accuracy < 0.7
    folds = divide(labels, groups, 0, "")
    assert len(folds) == 5
    assert all(not set(groups[train]) & set(groups[held]) for train, held in folds)


def test_folds_are_as_many_as_the_rarest_class_allows() -> None:
    labels: Labels = np.array([0] * 20 + [1] * 3)
    assert len(divide(labels, None, 0, "")) == 3
    groups = np.array([str(place) for place in range(20)] + ["x", "x", "y"])
    folds = divide(labels, groups, 0, "")
    assert len(folds) == 2
    assert all(set(labels[train]) == {0, 1} for train, _ in folds)


def test_groups_that_leave_no_folds_are_told() -> None:
    """Each class has two groups, but whichever are held out have all of one class."""
    groups, labels = np.array(["x", "y", "x", "z", "y", "z"]), np.array([0, 0, 1, 1, 2, 2])
    codes = Codes(np.zeros((6, 1)), labels, np.full(6, "train"), groups)
    check_codes(codes.labels, codes.splits, NAMES, "--probe knn", groups)
    with pytest.raises(DataError) as error:
        fit_probe("knn", "x", codes, NAMES, seed=0)
    assert str(error.value) == (
        "--probe knn: the groups of train leave no two folds that both have every class; give the images of the "
        "rarest class more groups"
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_more_dimensions_than_images_are_turned_without_a_difference(name: str, classes: int) -> None:
    random = np.random.default_rng(2)
    labels = np.arange(60) % classes
    features = random.normal(size=(60, 400)) + random.normal(size=(classes, 400))[labels] / 3
    features[:, 7] = 4.2
    estimator = fit_pipeline(name, {"C": 0.01}, features, labels, seed=0)
    plain = LinearSVC(C=0.01, dual=False) if name == "svm" else LogisticRegression(C=0.01, tol=1e-6)
    reference = make_pipeline(StandardScaler(), plain).fit(features, labels)
    unseen = random.normal(size=(50, 400))
    assert isinstance(estimator, Pipeline)
    np.testing.assert_allclose(
        estimator.decision_function(unseen), reference.decision_function(unseen), rtol=1e-3, atol=1e-4
    )
    parameters, right = choose_parameters(name, features, labels, folds := divide(labels, None, 0, ""), seed=0)
    reference.steps[-1][1].set_params(**parameters)
    assert right == (cross_val_predict(reference, features, labels, cv=folds) == labels).sum()


def test_distances_computed_once_give_the_same_svm(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = take()
    probe = fit_probe("rbf", "x", codes, NAMES, seed=0)
    monkeypatch.setattr(tuning, "KERNEL_IMAGES", 0)
    monkeypatch.setattr(tuning, "_count_right_rbf", None)
    direct = fit_probe("rbf", "x", codes, NAMES, seed=0)
    assert (direct.score.parameters, direct.score.cv_accuracy) == (probe.score.parameters, probe.score.cv_accuracy)
    assert isinstance(direct.estimator.named_steps["classifier"], SVC)


def split(labels: list[int], splits: list[str] | None = None) -> tuple[Labels, NDArray[np.str_]]:
    return np.array(labels), np.array(splits or ["train"] * len(labels))


def test_what_no_probe_can_be_fitted_on_is_told_whole() -> None:
    def faults(labels: Labels, splits: NDArray[np.str_], groups: list[str] | None = None) -> tuple[str, ...]:
        with pytest.raises(DataError) as error:
            check_codes(labels, splits, ("cat", "dog", "owl"), "--probe svm", np.array(groups) if groups else None)
        return error.value.faults

    assert faults(*split([0, 1], ["val", "test"])) == (
        "--probe svm: there is no train split to fit on (splits: val, test); put images in train/<class>/ folders, or "
        "give a recipe that splits them",
    )
    assert faults(*split([1, 1, 1, 0], ["train"] * 3 + ["test"])) == (
        "--probe svm: all 3 images of train are of the class dog, and a probe tells at least two apart; add a folder "
        "with images of another class to train",
    )
    assert faults(*split([0, 0, 1, 2, 2, 1], ["train"] * 4 + ["test"] * 2)) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 2 of 3 classes have fewer: "
        "dog (1), owl (1); add images to their folders in train, or take these classes out",
    )
    assert faults(*split([0, 0, 1, 1, 2]), ["a", "a", "a", "b", "c"]) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 1 of 3 classes has fewer: "
        "owl (1); add images to its folder in train, or take the class out",
        "--probe svm: cross-validation needs at least 2 groups of each class in train, and 1 of 3 classes has a single "
        "one: cat (a); add images of other groups, or take the class out",
    )
    check_codes(*split([0, 0, 1, 1, 2, 2]), ("cat", "dog", "owl"), "--probe svm")


def test_a_name_that_no_probe_has_is_told() -> None:
    with pytest.raises(RecipeError) as error:
        check_probe("logistics", "--probe")
    assert str(error.value) == "--probe logistics: there is no such probe; did you mean 'logistic'?"
    check_probe("knn", "--probe")


def test_features_that_are_not_finite_are_told() -> None:
    codes = take(40)
    codes.features[[3, 9], 5] = np.nan, np.inf
    with pytest.raises(RunError) as error:
        fit_probe("svm", "layer4", codes, NAMES, seed=0)
    assert str(error.value) == (
        "--probe svm: the features of layer4 are not finite for 2 of 40 images; take a layer before it, or check the "
        "weights"
    )
