"""A solved head is at its optimum, which scikit-learn finds too, and heeds weights and groups."""

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
from sklearn.preprocessing import StandardScaler

from ftcli.errors import DataError, RunError
from ftcli.features.solving import LogisticHead, ProbeData, fit_logistic_head
from ftcli.features.tuning import make_folds, param_grid


def make_data(classes: int = 3, count: int = 240, noise_std: float = 6) -> ProbeData:
    digits = load_digits()
    selected = np.flatnonzero(digits.target < classes)[:count]
    noise = np.random.default_rng(0).normal(0, noise_std, (count, 64))
    features = (17 * (digits.data[selected] + noise) - 40).astype(np.float32)
    return ProbeData(features, digits.target[selected].astype(np.int64), np.ones(count), None, classes)


def add_weights(data: ProbeData) -> ProbeData:
    return replace(data, weights=1.0 + 3.0 * (data.labels == 1) + np.arange(len(data.labels)) % 2)


def compute_gradient(data: ProbeData, head: LogisticHead) -> NDArray[Any]:
    """The gradient of the penalised loss in the coefficients and biases that act on standardised features."""
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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_fit_logistic_head_reaches_zero_gradient(classes: int, weighted: bool) -> None:
    data = add_weights(make_data(classes)) if weighted else make_data(classes)
    gradient = compute_gradient(data, fit_logistic_head(data, 0, ""))
    assert np.abs(gradient).max() < 3e-6
    other_gradient = compute_gradient(
        data, fit_logistic_head(make_data(classes) if weighted else add_weights(data), 0, "")
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
    """Every image stands ten times: among its own copies a weak penalty looks good, which groups show to be wrong."""
    originals = make_data(count=40, noise_std=20)
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
        "stage head, fit: what the frozen layers give is not finite for 2 of 240 training images; check the "
        "weights, or set precision: float32"
    )
    with pytest.raises(DataError) as grouped:
        fit_logistic_head(replace(data, groups=np.array([f"{label}" for label in data.labels])), 0, "stage head, fit")
    assert str(grouped.value).startswith("stage head, fit: the groups of train leave no two folds")
