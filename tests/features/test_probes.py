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
from ftcli.features.probes import PROBES, FeatureSet, check_probe_labels, check_probe_name, fit_probe
from ftcli.features.tuning import Labels, cast_features, fit_pipeline, grid_search, make_folds, param_grid
from ftcli.statistics import wilson_interval

NAMES = ("three", "five", "eight")


def load_digit_features(count: int = 320) -> FeatureSet:
    """Digits that are easily mistaken for one another; their 64 pixels, some of them always black, are the features."""
    digits = load_digits()
    selected = np.flatnonzero(np.isin(digits.target, (3, 5, 8)))[:count]
    labels = np.searchsorted((3, 5, 8), digits.target[selected]).astype(np.int64)
    splits = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
    return FeatureSet(digits.data[selected].astype(np.float32), labels, splits)


@pytest.mark.parametrize("name", PROBES)
def test_fit_probe_chooses_best_cross_validated_parameters(name: str) -> None:
    feature_set = load_digit_features()
    probe = fit_probe(name, "pixels", feature_set, NAMES, seed=7)
    is_train = feature_set.splits == "train"
    features, labels = cast_features(name, feature_set.features[is_train]), feature_set.labels[is_train]
    folds = make_folds(labels, None, 7, "")
    scores = []
    for parameters in param_grid(name, features, 128):
        classifier = probe.estimator.named_steps["classifier"].__class__(**{
            **probe.estimator.named_steps["classifier"].get_params(), **parameters
        })  # fmt: skip
        predictions = cross_val_predict(make_pipeline(StandardScaler(), classifier), features, labels, cv=folds)
        scores.append((int((predictions == labels).sum()), parameters))
    best = max(count for count, _ in scores)
    assert probe.score.parameters == next(parameters for count, parameters in scores if count == best)
    assert probe.score.cv_accuracy == best / len(labels)
    assert len({count for count, _ in scores}) > 2  # it makes a difference
    assert probe.score.folds == 5


@pytest.mark.parametrize("name", PROBES)
def test_fit_probe_measures_val_and_test_only(name: str) -> None:
    feature_set = load_digit_features()
    probe = fit_probe(name, "pixels", feature_set, NAMES, seed=7)
    score = probe.score
    for split, accuracy in (("val", score.val_accuracy), ("test", score.test_accuracy)):
        in_split = feature_set.splits == split
        assert accuracy is not None
        assert accuracy == (probe.predict(feature_set.features[in_split]) == feature_set.labels[in_split]).mean()
        assert accuracy > 0.8
        num_correct = round(accuracy * 80)
    assert (score.test_low, score.test_high) == wilson_interval(num_correct, 80)
    assert (score.name, score.layer, score.train_images, score.test_images) == (name, "pixels", 160, 80)
    majority = np.bincount(feature_set.labels[feature_set.splits == "train"]).argmax()
    assert score.test_majority == (feature_set.labels[feature_set.splits == "test"] == majority).mean()

    corrupted = feature_set.features.copy()
    corrupted[feature_set.splits != "train"] = 1e6
    labels = np.where(feature_set.splits == "train", feature_set.labels, 0)
    other = fit_probe(name, "pixels", FeatureSet(corrupted, labels, feature_set.splits), NAMES, seed=7)
    assert (other.score.parameters, other.score.cv_accuracy) == (score.parameters, score.cv_accuracy)
    assert np.array_equal(other.predict(feature_set.features), probe.predict(feature_set.features))


@pytest.mark.parametrize("name", PROBES)
def test_fit_probe_does_not_learn_noise(name: str) -> None:
    """What fits its own images perfectly is still wrong on half of those held out."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(200, 150)), random.integers(0, 2, 200)
    probe = fit_probe(name, "noise", FeatureSet(features, labels, np.full(200, "train")), ("a", "b"), seed=0)
    assert 0.35 < probe.score.cv_accuracy < 0.65
    assert probe.score.val_accuracy is None
    assert probe.score.test_accuracy is probe.score.test_low is probe.score.test_majority is None
    assert probe.score.test_images == 0


def test_grid_search_fits_scaler_without_held_out_images() -> None:
    """The first feature tells the class. Whoever has seen the outlier shrinks it, and goes by the second."""
    features = np.array([[index % 2, index] for index in range(8)] + [[1, 0], [1e6, 7]], dtype=np.float32)
    labels = np.array([0, 1] * 4 + [1, 1])
    fold = (np.arange(8), np.arange(8, 10))
    assert grid_search("knn", features, labels, [fold], seed=0)[1] == 2


def test_fit_probe_is_deterministic() -> None:
    feature_set = load_digit_features()
    for name in ("svm", "logistic"):
        first, again = (
            fit_probe(name, "x", feature_set, NAMES, seed=3).estimator.named_steps["classifier"] for _ in "ab"
        )
        assert first.coef_.tobytes() == again.coef_.tobytes()
    train_labels = feature_set.labels[feature_set.splits == "train"]
    assert np.array_equal(make_folds(train_labels, None, 3, "")[0][1], make_folds(train_labels, None, 3, "")[0][1])
    assert not np.array_equal(make_folds(train_labels, None, 3, "")[0][1], make_folds(train_labels, None, 4, "")[0][1])


def test_make_folds_keeps_groups_together() -> None:
    """Near copies with labels at random: only who has seen a copy knows its label."""
    random = np.random.default_rng(1)
    features = random.normal(size=(40, 1, 30)).repeat(5, axis=1) + random.normal(size=(40, 5, 30)) / 50
    labels, groups = random.integers(0, 2, 40).repeat(5), np.arange(40).astype(str).repeat(5)
    feature_set = FeatureSet(features.reshape(200, 30), labels, np.full(200, "train"))
    assert fit_probe("knn", "x", feature_set, ("a", "b"), seed=0).score.cv_accuracy > 0.95
    assert fit_probe("knn", "x", replace(feature_set, groups=groups), ("a", "b"), seed=0).score.cv_accuracy < 0.7
    folds = make_folds(labels, groups, 0, "")
    assert len(folds) == 5
    assert all(not set(groups[train]) & set(groups[held_out]) for train, held_out in folds)


def test_make_folds_count_is_limited_by_rarest_class() -> None:
    labels: Labels = np.array([0] * 20 + [1] * 3)
    assert len(make_folds(labels, None, 0, "")) == 3
    groups = np.array([str(index) for index in range(20)] + ["x", "x", "y"])
    folds = make_folds(labels, groups, 0, "")
    assert len(folds) == 2
    assert all(set(labels[train]) == {0, 1} for train, _ in folds)


def test_make_folds_reports_groups_without_folds() -> None:
    """Each class has two groups, but whichever are held out have all of one class."""
    groups, labels = np.array(["x", "y", "x", "z", "y", "z"]), np.array([0, 0, 1, 1, 2, 2])
    feature_set = FeatureSet(np.zeros((6, 1)), labels, np.full(6, "train"), groups)
    check_probe_labels(feature_set.labels, feature_set.splits, NAMES, "--probe knn", groups)
    with pytest.raises(DataError) as error:
        fit_probe("knn", "x", feature_set, NAMES, seed=0)
    assert str(error.value) == (
        "--probe knn: the groups of train leave no two folds that both have every class; give the images of the "
        "rarest class more groups"
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_fit_pipeline_projection_changes_nothing(name: str, classes: int) -> None:
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
    parameters, num_correct = grid_search(name, features, labels, folds := make_folds(labels, None, 0, ""), seed=0)
    reference.steps[-1][1].set_params(**parameters)
    assert num_correct == (cross_val_predict(reference, features, labels, cv=folds) == labels).sum()


def test_grid_search_precomputed_kernel_matches_svc(monkeypatch: pytest.MonkeyPatch) -> None:
    feature_set = load_digit_features()
    probe = fit_probe("rbf", "x", feature_set, NAMES, seed=0)
    monkeypatch.setattr(tuning, "MAX_KERNEL_IMAGES", 0)
    monkeypatch.setattr(tuning, "_count_correct_rbf", None)
    direct = fit_probe("rbf", "x", feature_set, NAMES, seed=0)
    assert (direct.score.parameters, direct.score.cv_accuracy) == (probe.score.parameters, probe.score.cv_accuracy)
    assert isinstance(direct.estimator.named_steps["classifier"], SVC)


def make_splits(labels: list[int], splits: list[str] | None = None) -> tuple[Labels, NDArray[np.str_]]:
    return np.array(labels), np.array(splits or ["train"] * len(labels))


def test_check_probe_labels_reports_all_errors() -> None:
    def get_errors(labels: Labels, splits: NDArray[np.str_], groups: list[str] | None = None) -> tuple[str, ...]:
        with pytest.raises(DataError) as error:
            check_probe_labels(
                labels, splits, ("cat", "dog", "owl"), "--probe svm", np.array(groups) if groups else None
            )
        return error.value.messages

    assert get_errors(*make_splits([0, 1], ["val", "test"])) == (
        "--probe svm: there is no train split to fit on (splits: val, test); put images in train/<class>/ folders, or "
        "give a recipe that splits them",
    )
    assert get_errors(*make_splits([1, 1, 1, 0], ["train"] * 3 + ["test"])) == (
        "--probe svm: all 3 images of train are of the class dog, and a probe tells at least two apart; add a folder "
        "with images of another class to train",
    )
    assert get_errors(*make_splits([0, 0, 1, 2, 2, 1], ["train"] * 4 + ["test"] * 2)) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 2 of 3 classes have fewer: "
        "dog (1), owl (1); add images to their folders in train, or take these classes out",
    )
    assert get_errors(*make_splits([0, 0, 1, 1, 2]), ["a", "a", "a", "b", "c"]) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 1 of 3 classes has fewer: "
        "owl (1); add images to its folder in train, or take the class out",
        "--probe svm: cross-validation needs at least 2 groups of each class in train, and 1 of 3 classes has a single "
        "one: cat (a); add images of other groups, or take the class out",
    )
    check_probe_labels(*make_splits([0, 0, 1, 1, 2, 2]), ("cat", "dog", "owl"), "--probe svm")


def test_check_probe_name_suggests_near_name() -> None:
    with pytest.raises(RecipeError) as error:
        check_probe_name("logistics", "--probe")
    assert str(error.value) == "--probe logistics: there is no such probe; did you mean 'logistic'?"
    check_probe_name("knn", "--probe")


def test_fit_probe_reports_nonfinite_features() -> None:
    feature_set = load_digit_features(40)
    feature_set.features[[3, 9], 5] = np.nan, np.inf
    with pytest.raises(RunError) as error:
        fit_probe("svm", "layer4", feature_set, NAMES, seed=0)
    assert str(error.value) == (
        "--probe svm: the features of layer4 are not finite for 2 of 40 images; take a layer before it, or check the "
        "weights"
    )
