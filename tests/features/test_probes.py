"""Tests of probes and logistic heads against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from ftcli.errors import DataError, RecipeError, RunError
from ftcli.features import probe_search
from ftcli.features.probe_search import Labels, fit_pipeline, grid_search, make_folds, param_grid
from ftcli.features.probes import (
    PROBES,
    FeatureSet,
    LogisticHead,
    ProbeData,
    cast_features,
    check_probe_labels,
    check_probe_name,
    fit_logistic_head,
    fit_probe,
    probe_to_linear,
)
from ftcli.statistics import wilson_interval

CLASSES = ("three", "five", "eight")


def load_digit_features(num_images: int = 320) -> FeatureSet:
    """Return digits that resemble each other; the features are their 64 pixels, some of them constant."""
    digits = load_digits()
    selected = np.flatnonzero(np.isin(digits.target, (3, 5, 8)))[:num_images]
    labels = np.searchsorted((3, 5, 8), digits.target[selected]).astype(np.int64)
    splits = np.array(["train", "train", "val", "test"])[np.arange(num_images) % 4]
    return FeatureSet(digits.data[selected].astype(np.float32), labels, splits)


@pytest.mark.parametrize("name", PROBES)
def test_fit_probe_chooses_best_cross_validated_parameters(name: str) -> None:
    feature_set = load_digit_features()
    probe = fit_probe(name, "pixels", feature_set, CLASSES, seed=7)
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
    probe = fit_probe(name, "pixels", feature_set, CLASSES, seed=7)
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
    other = fit_probe(name, "pixels", FeatureSet(corrupted, labels, feature_set.splits), CLASSES, seed=7)
    assert (other.score.parameters, other.score.cv_accuracy) == (score.parameters, score.cv_accuracy)
    assert np.array_equal(other.predict(feature_set.features), probe.predict(feature_set.features))


@pytest.mark.parametrize("name", PROBES)
def test_fit_probe_does_not_learn_noise(name: str) -> None:
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(200, 150)), random.integers(0, 2, 200)
    probe = fit_probe(name, "noise", FeatureSet(features, labels, np.full(200, "train")), ("a", "b"), seed=0)
    assert 0.35 < probe.score.cv_accuracy < 0.65
    assert probe.score.val_accuracy is None
    assert probe.score.test_accuracy is probe.score.test_low is probe.score.test_majority is None
    assert probe.score.test_images == 0


def test_grid_search_fits_scaler_without_held_out_images() -> None:
    """The first feature gives the class; a scaler fitted to the outlier too would shrink it, and the second decide."""
    features = np.array([[index % 2, index] for index in range(8)] + [[1, 0], [1e6, 7]], dtype=np.float32)
    labels = np.array([0, 1] * 4 + [1, 1])
    fold = (np.arange(8), np.arange(8, 10))
    assert grid_search("knn", features, labels, [fold], seed=0)[1] == 2


def test_fit_probe_is_deterministic() -> None:
    feature_set = load_digit_features()
    for name in ("svm", "logistic"):
        first, again = (
            fit_probe(name, "x", feature_set, CLASSES, seed=3).estimator.named_steps["classifier"] for _ in "ab"
        )
        assert first.coef_.tobytes() == again.coef_.tobytes()
    train_labels = feature_set.labels[feature_set.splits == "train"]
    assert np.array_equal(make_folds(train_labels, None, 3, "")[0][1], make_folds(train_labels, None, 3, "")[0][1])
    assert not np.array_equal(make_folds(train_labels, None, 3, "")[0][1], make_folds(train_labels, None, 4, "")[0][1])


def test_make_folds_keeps_groups_together() -> None:
    """Near copies with random labels: only a fold with copies on both sides predicts them."""
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
    """Each class has 2 groups, but every choice of held-out groups has all images of one class."""
    groups, labels = np.array(["x", "y", "x", "z", "y", "z"]), np.array([0, 0, 1, 1, 2, 2])
    feature_set = FeatureSet(np.zeros((6, 1)), labels, np.full(6, "train"), groups)
    check_probe_labels(feature_set.labels, feature_set.splits, CLASSES, "--probe knn", groups)
    with pytest.raises(DataError) as error:
        fit_probe("knn", "x", feature_set, CLASSES, seed=0)
    assert str(error.value) == (
        "--probe knn: the groups of train allow no 2 folds that both have every class; split the images of the rarest "
        "class into more groups"
    )


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_fit_pipeline_projection_changes_nothing(name: str, num_classes: int) -> None:
    random = np.random.default_rng(2)
    labels = np.arange(60) % num_classes
    features = random.normal(size=(60, 400)) + random.normal(size=(num_classes, 400))[labels] / 3
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
    probe = fit_probe("rbf", "x", feature_set, CLASSES, seed=0)
    monkeypatch.setattr(probe_search, "MAX_KERNEL_IMAGES", 0)
    monkeypatch.setattr(probe_search, "_predict_rbf", None)
    direct = fit_probe("rbf", "x", feature_set, CLASSES, seed=0)
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
        "use a recipe that splits them",
    )
    assert get_errors(*make_splits([1, 1, 1, 0], ["train"] * 3 + ["test"])) == (
        "--probe svm: all 3 images of train have the class dog, and at least 2 classes are needed; add a folder with "
        "images of another class to train",
    )
    assert get_errors(*make_splits([0, 0, 1, 2, 2, 1], ["train"] * 4 + ["test"] * 2)) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 2 of 3 classes have fewer: "
        "dog (1), owl (1); add images to their folders in train, or remove these classes",
    )
    assert get_errors(*make_splits([0, 0, 1, 1, 2]), ["a", "a", "a", "b", "c"]) == (
        "--probe svm: cross-validation needs at least 2 images of each class in train, and 1 of 3 classes has fewer: "
        "owl (1); add images to its folder in train, or remove this class",
        "--probe svm: cross-validation needs at least 2 groups of each class in train, and 1 of 3 classes has only "
        "one: cat (a); add images of other groups, or remove this class",
    )
    check_probe_labels(*make_splits([0, 0, 1, 1, 2, 2]), ("cat", "dog", "owl"), "--probe svm")


def test_check_probe_name_suggests_near_name() -> None:
    with pytest.raises(RecipeError) as error:
        check_probe_name("logistics", "--probe")
    assert str(error.value) == "--probe: unknown probe 'logistics'; did you mean 'logistic'?"
    check_probe_name("knn", "--probe")


def test_fit_probe_reports_nonfinite_features() -> None:
    feature_set = load_digit_features(40)
    feature_set.features[[3, 9], 5] = np.nan, np.inf
    with pytest.raises(RunError) as error:
        fit_probe("svm", "layer4", feature_set, CLASSES, seed=0)
    assert str(error.value) == (
        "--probe svm: the features of layer4 are not finite for 2 of 40 images; choose an earlier layer, or check the "
        "weights"
    )


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_probe_to_linear_predicts_the_same_classes(name: str, num_classes: int) -> None:
    digits = load_digits()
    selected = np.flatnonzero(digits.target < num_classes)[:500]
    features, labels = (17 * digits.data[selected] - 40).astype(np.float32), digits.target[selected].astype(np.int64)
    splits = np.array(["train", "test"])[np.arange(len(selected)) % 2]
    probe = fit_probe(
        name, "pixels", FeatureSet(features, labels, splits), [str(n) for n in range(num_classes)], seed=0
    )
    weight, bias = probe_to_linear(probe, 64)
    assert (weight.shape, bias.shape) == ((num_classes, 64), (num_classes,))
    assert weight.dtype == bias.dtype == torch.float32
    outputs = torch.nn.functional.linear(torch.from_numpy(features), weight, bias)
    assert np.array_equal(outputs.argmax(1).numpy(), probe.predict(features))
    if name == "logistic":
        expected = probe.estimator.predict_proba(features.astype(np.float64))
        assert np.abs(outputs.softmax(1).numpy() - expected).max() < 1e-5
    else:
        margins = probe.estimator.decision_function(features.astype(np.float64))
        output_margins = (outputs[:, 1] - outputs[:, 0] if num_classes == 2 else outputs).numpy()
        assert np.abs(output_margins - margins).max() < 1e-4


def make_data(num_classes: int = 3, num_images: int = 240, noise_std: float = 6) -> ProbeData:
    digits = load_digits()
    selected = np.flatnonzero(digits.target < num_classes)[:num_images]
    noise = np.random.default_rng(0).normal(0, noise_std, (num_images, 64))
    features = (17 * (digits.data[selected] + noise) - 40).astype(np.float32)
    return ProbeData(features, digits.target[selected].astype(np.int64), np.ones(num_images), None, num_classes)


def add_weights(data: ProbeData) -> ProbeData:
    return replace(data, weights=1.0 + 3.0 * (data.labels == 1) + np.arange(len(data.labels)) % 2)


def compute_gradient(data: ProbeData, head: LogisticHead) -> NDArray[Any]:
    """Return the gradient of the regularized loss with respect to coefficients and biases on standardized features."""
    weights = data.weights / data.weights.mean()
    features = data.features.astype(np.float64)
    scaler = StandardScaler().fit(features, sample_weight=weights)
    values = scaler.transform(features)
    coefficients = head.weight.double().numpy() * scaler.scale_
    biases = head.bias.double().numpy() + head.weight.double().numpy() @ scaler.mean_
    probabilities = torch.from_numpy(values @ coefficients.T + biases).softmax(1).numpy()
    errors = weights[:, None] * (probabilities - np.eye(data.num_classes)[data.labels])
    penalty = coefficients / head.C * (2 if data.num_classes == 2 else 1)  # of two, halves of one margin
    return np.concatenate([(errors.T @ values + penalty).ravel(), errors.sum(0)]) / len(values)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_fit_logistic_head_reaches_zero_gradient(num_classes: int, is_weighted: bool) -> None:
    data = add_weights(make_data(num_classes)) if is_weighted else make_data(num_classes)
    gradient = compute_gradient(data, fit_logistic_head(data, 0, ""))
    assert np.abs(gradient).max() < 3e-6
    other_gradient = compute_gradient(
        data, fit_logistic_head(make_data(num_classes) if is_weighted else add_weights(data), 0, "")
    )
    assert np.abs(other_gradient).max() > 1e-4


def test_fit_logistic_head_matches_scikit_learn() -> None:
    data = add_weights(make_data())
    head = fit_logistic_head(data, 0, "")
    weights = data.weights / data.weights.mean()
    values = data.features.astype(np.float64)
    scaler = StandardScaler().fit(values, sample_weight=weights)
    reference = LogisticRegression(C=head.C, tol=1e-9, solver="newton-cg", max_iter=1000)
    reference.fit(scaler.transform(values), data.labels, sample_weight=weights)
    outputs = torch.nn.functional.linear(torch.from_numpy(data.features), head.weight, head.bias)
    assert np.abs(outputs.softmax(1).numpy() - reference.predict_proba(scaler.transform(values))).max() < 5e-5


def test_fit_logistic_head_chooses_c_with_lowest_held_out_loss() -> None:
    data = make_data()
    head = fit_logistic_head(data, 3, "")
    values = data.features.astype(np.float64)
    losses = {}
    for parameters in param_grid("logistic", values, 100):
        total = 0.0
        for train, held_out in make_folds(data.labels, None, 3, ""):
            scaler = StandardScaler().fit(values[train])
            fitted = LogisticRegression(**parameters, tol=1e-8, max_iter=10_000)
            fitted.fit(scaler.transform(values[train]), data.labels[train])
            total += log_loss(data.labels[held_out], fitted.predict_proba(scaler.transform(values[held_out]))) * len(
                held_out
            )
        losses[parameters["C"]] = total / len(values)
    assert min(losses, key=lambda strength: losses[strength]) == head.C
    assert head.C not in (min(losses), max(losses))
    assert head.held_out_loss == pytest.approx(min(losses.values()), rel=1e-4)


def test_fit_logistic_head_uses_relative_weights() -> None:
    data = add_weights(make_data())
    first, scaled = (fit_logistic_head(each, 0, "") for each in (data, replace(data, weights=7 * data.weights)))
    assert torch.allclose(first.weight, scaled.weight, rtol=1e-4, atol=1e-7)
    plain, sevens = (fit_logistic_head(replace(data, weights=np.full(240, w)), 0, "") for w in (1.0, 7.0))
    assert torch.equal(plain.weight, sevens.weight)
    assert not torch.allclose(first.weight, plain.weight, rtol=1e-2)


def test_fit_logistic_head_keeps_groups_within_one_fold() -> None:
    """Every image occurs 10 times, so that a weak penalty looks good unless groups keep the copies together."""
    originals = make_data(num_images=40, noise_std=20)
    copies = np.repeat(np.arange(40), 10)
    data = replace(
        originals, features=originals.features[copies], labels=originals.labels[copies], weights=np.ones(400)
    )
    grouped = fit_logistic_head(replace(data, groups=np.array([f"group {index}" for index in copies])), 0, "")
    ungrouped = fit_logistic_head(data, 0, "")
    assert grouped.C < ungrouped.C
    assert grouped.held_out_loss > 3 * ungrouped.held_out_loss


def test_fit_logistic_head_reports_unusable_data() -> None:
    data = make_data()
    corrupted = data.features.copy()
    corrupted[[3, 5], 1] = np.nan
    with pytest.raises(RunError) as caught:
        fit_logistic_head(replace(data, features=corrupted), 0, "stage head, fit")
    assert str(caught.value) == (
        "stage head, fit: the features of 2 of 240 training images are not finite; check the weights, or set "
        "precision: float32"
    )
    with pytest.raises(DataError) as grouped:
        fit_logistic_head(replace(data, groups=np.array([f"{label}" for label in data.labels])), 0, "stage head, fit")
    assert str(grouped.value).startswith("stage head, fit: the groups of train allow no 2 folds ")
