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
from ftcli.features.solving import Lesson, Solution, solve_head
from ftcli.features.tuning import divide, list_candidates


def take(classes: int = 3, count: int = 240, spread: float = 6) -> Lesson:
    digits = load_digits()
    kept = np.flatnonzero(digits.target < classes)[:count]
    noise = np.random.default_rng(0).normal(0, spread, (count, 64))
    features = (17 * (digits.data[kept] + noise) - 40).astype(np.float32)
    return Lesson(features, digits.target[kept].astype(np.int64), np.ones(count), None, classes)


def weigh(lesson: Lesson) -> Lesson:
    return replace(lesson, weights=1.0 + 3.0 * (lesson.labels == 1) + np.arange(len(lesson.labels)) % 2)


def measure_gradient(lesson: Lesson, solution: Solution) -> NDArray[Any]:
    """The gradient of the penalised loss in the coefficients and biases that act on standardised features."""
    weights = lesson.weights / lesson.weights.mean()
    features = lesson.features.astype(np.float64)
    scaler = StandardScaler().fit(features, sample_weight=weights)
    values = scaler.transform(features)
    slopes = solution.weight.double().numpy() * scaler.scale_
    biases = solution.bias.double().numpy() + solution.weight.double().numpy() @ scaler.mean_
    shares = torch.from_numpy(values @ slopes.T + biases).softmax(1).numpy()
    errors = weights[:, None] * (shares - np.eye(lesson.classes)[lesson.labels])
    penalty = slopes / solution.strength * (2 if lesson.classes == 2 else 1)  # of two, halves of one margin
    return np.concatenate([(errors.T @ values + penalty).ravel(), errors.sum(0)]) / len(values)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_gradient_is_zero(classes: int, weighted: bool) -> None:
    lesson = weigh(take(classes)) if weighted else take(classes)
    gradient = measure_gradient(lesson, solve_head(lesson, 0, ""))
    assert np.abs(gradient).max() < 3e-6
    far = measure_gradient(lesson, solve_head(take(classes) if weighted else weigh(lesson), 0, ""))
    assert np.abs(far).max() > 1e-4


def test_scikit_learn_says_the_same() -> None:
    lesson = weigh(take())
    solution = solve_head(lesson, 0, "")
    weights = lesson.weights / lesson.weights.mean()
    values = lesson.features.astype(np.float64)
    scaler = StandardScaler().fit(values, sample_weight=weights)
    own = LogisticRegression(C=solution.strength, tol=1e-9, solver="newton-cg", max_iter=1000)
    own.fit(scaler.transform(values), lesson.labels, sample_weight=weights)
    outputs = torch.nn.functional.linear(torch.from_numpy(lesson.features), solution.weight, solution.bias)
    assert np.abs(outputs.softmax(1).numpy() - own.predict_proba(scaler.transform(values))).max() < 5e-5


def test_the_strength_has_the_lowest_loss_of_what_is_held_out() -> None:
    lesson = take()
    solution = solve_head(lesson, 3, "")
    values = lesson.features.astype(np.float64)
    losses = {}
    for parameters in list_candidates("logistic", values, 100):
        total = 0.0
        for train, held in divide(lesson.labels, None, 3, ""):
            scaler = StandardScaler().fit(values[train])
            fitted = LogisticRegression(**parameters, tol=1e-8, max_iter=10_000)
            fitted.fit(scaler.transform(values[train]), lesson.labels[train])
            total += log_loss(lesson.labels[held], fitted.predict_proba(scaler.transform(values[held]))) * len(held)
        losses[parameters["C"]] = total / len(values)
    assert solution.strength == min(losses, key=lambda strength: losses[strength])
    assert solution.strength not in (min(losses), max(losses))
    assert solution.held_out_loss == pytest.approx(min(losses.values()), rel=1e-4)


def test_only_relative_weights_count_and_equal_ones_change_nothing() -> None:
    lesson = weigh(take())
    first, scaled = (solve_head(each, 0, "") for each in (lesson, replace(lesson, weights=7 * lesson.weights)))
    assert torch.allclose(first.weight, scaled.weight, rtol=1e-4, atol=1e-7)
    plain, sevens = (solve_head(replace(lesson, weights=np.full(240, w)), 0, "") for w in (1.0, 7.0))
    assert torch.equal(plain.weight, sevens.weight)
    assert not torch.allclose(first.weight, plain.weight, rtol=1e-2)


def test_a_group_is_on_one_side_of_every_fold() -> None:
    """Every image stands ten times: among its own copies a weak penalty looks good, which groups show to be wrong."""
    few = take(count=40, spread=20)
    copies = np.repeat(np.arange(40), 10)
    lesson = replace(few, features=few.features[copies], labels=few.labels[copies], weights=np.ones(400))
    apart = solve_head(replace(lesson, groups=np.array([f"group {place}" for place in copies])), 0, "")
    together = solve_head(lesson, 0, "")
    assert apart.strength < together.strength
    assert apart.held_out_loss > 3 * together.held_out_loss


def test_what_cannot_be_solved_is_told() -> None:
    lesson = take()
    broken = lesson.features.copy()
    broken[[3, 5], 1] = np.nan
    with pytest.raises(RunError) as caught:
        solve_head(replace(lesson, features=broken), 0, "stage head, fit")
    assert str(caught.value) == (
        "stage head, fit: what the frozen layers give is not finite for 2 of 240 training images; check the "
        "weights, or set precision: float32"
    )
    with pytest.raises(DataError) as grouped:
        solve_head(replace(lesson, groups=np.array([f"{label}" for label in lesson.labels])), 0, "stage head, fit")
    assert str(grouped.value).startswith("stage head, fit: the groups of train leave no two folds")
