"""What a comparison of runs says is true: of chance, and of what differs."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcli.comparison.config_diff import diff_configs
from ftcli.comparison.loaded_run import LoadedRun
from ftcli.comparison.significance import (
    RunPredictions,
    apply_holm_correction,
    bootstrap_difference,
    compute_sample_size,
    mcnemar,
    run_pairwise_tests,
)
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import Checkpoint


def test_mcnemar_matches_coin_throws() -> None:
    throws = [sum(throw) for throw in product((0, 1), repeat=6)]
    assert mcnemar(1, 5) == pytest.approx(sum(heads <= 1 or heads >= 5 for heads in throws) / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_mcnemar_false_positive_rate() -> None:
    random = np.random.default_rng(0)
    p_value = cache(mcnemar)
    counts = random.multinomial(200, [0.1, 0.1, 0.8], size=4000)
    rate = np.mean([p_value(int(only_first), int(only_second)) < 0.05 for only_first, only_second, _ in counts])
    assert 0.01 < rate <= 0.055  # two standard errors above 0.05 is 0.057; the exact test stays below 0.05


def test_apply_holm_correction_by_hand() -> None:
    assert apply_holm_correction([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert apply_holm_correction([0.5, 0.001]) == pytest.approx((0.5, 0.002))
    assert apply_holm_correction([0.9, 0.6]) == (1.0, 1.0)


def test_bootstrap_difference_matches_resampling_images() -> None:
    # Of three images one is right for the first alone: all resamples are 27, and 1 of them has it thrice.
    assert bootstrap_difference(1, 0, 3, seed=0) == (0, 1)
    differences = np.array([1] * 31 + [-1] * 12 + [0] * 613)
    means = np.random.default_rng(1).choice(differences, size=(10_000, len(differences))).mean(1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_difference(31, 12, 656, seed=0) == pytest.approx(tuple(expected), abs=0.0016)
    assert bootstrap_difference(0, 0, 5, seed=0) == (0, 0)


def test_bootstrap_difference_coverage() -> None:
    counts = np.random.default_rng(0).multinomial(300, [0.15, 0.1, 0.75], size=400)
    num_covered = 0
    for only_first, only_second, _ in counts:
        low, high = bootstrap_difference(int(only_first), int(only_second), 300, seed=0)
        num_covered += low <= 0.05 <= high
    assert 0.92 < num_covered / 400 < 0.98


def test_compute_sample_size_gives_the_power() -> None:
    num_images = compute_sample_size(31, 20, 656)
    probabilities = [31 / 656, 20 / 656, 605 / 656]
    counts = np.random.default_rng(0).multinomial(num_images, probabilities, size=1000)
    assert np.mean(
        [mcnemar(int(only_first), int(only_second)) < 0.05 for only_first, only_second, _ in counts]
    ) == pytest.approx(0.8, abs=0.04)


def _create_predictions(name: str, outcomes: str) -> RunPredictions:
    """A run that is right where the text has a 1; a 2 is another class, which is wrong too."""
    predicted = np.array([{"1": 1, "0": 0, "2": 2}[char] for char in outcomes], dtype=np.int64)
    return RunPredictions(name, predicted, np.ones(len(outcomes), dtype=np.int64))


def test_run_pairwise_tests_describes_a_significant_difference() -> None:
    same, far = "1" * 613, "0" * 12 + "1" * 31
    frozen = _create_predictions("frozen", same + far)
    scratch = _create_predictions("scratch", same + "1" * 12 + "0" * 31)
    (found,) = run_pairwise_tests([scratch, frozen])
    assert (found.only_first, found.only_second, found.significant) == (12, 31, True)
    assert found.difference == pytest.approx(-19 / 656)
    assert found.p_value == found.p_corrected == mcnemar(12, 31)
    assert found.words == (
        "frozen is right on 31 images that scratch gets wrong, and wrong on 12 that scratch gets right: 2.9 points "
        f"better (95 %: {-100 * found.high:.1f} to {-100 * found.low:.1f}). Chance alone would give a difference as "
        "large in 0.54 % of cases: more than luck."
    )


def test_run_pairwise_tests_describes_a_nonsignificant_difference() -> None:
    one, other = _create_predictions("a", "1" * 95 + "11100"), _create_predictions("b", "1" * 95 + "00011")
    (found,) = run_pairwise_tests([one, other])
    assert not found.significant
    sample_size = -(-compute_sample_size(3, 2, 100) // 100) * 100
    assert found.words == (
        "a is right on 3 images that b gets wrong, and wrong on 2 that b gets right: 1.0 points better (95 %: -3.0 to "
        "6.0). Chance alone would give a difference as large in 100 % of cases: this may well be luck; if it is none, "
        f"some {sample_size:,} images are needed to tell."
    )


def test_run_pairwise_tests_describes_equal_predictions() -> None:
    differences = run_pairwise_tests(
        [_create_predictions("a", "1100"), _create_predictions("b", "1100"), _create_predictions("c", "1102")]
    )
    assert [found.words for found in differences] == [
        "a and b give every image the same class: nothing tells them apart.",
        "a and c are right on the same images: nothing tells them apart.",
        "b and c are right on the same images: nothing tells them apart.",
    ]
    (found,) = run_pairwise_tests([_create_predictions("a", "1110"), _create_predictions("b", "1101")])
    assert found.words == (
        "a is right on 1 image that b gets wrong, and wrong on 1 that b gets right: neither is better (95 %: -75.0 to "
        "75.0)."
    )


def test_run_pairwise_tests_corrects_for_several_pairs() -> None:
    runs = [
        _create_predictions("a", "1" * 20),
        _create_predictions("b", "0" * 6 + "1" * 14),
        _create_predictions("c", "1" * 14 + "0" * 6),
    ]
    found = run_pairwise_tests(runs)
    assert [each.p_value for each in found] == [mcnemar(6, 0), mcnemar(6, 0), 1.0]
    assert [each.p_corrected for each in found] == [3 * mcnemar(6, 0), 3 * mcnemar(6, 0), 1.0]
    assert not any(each.significant for each in found)
    assert "in 3.1 % of cases, or 9.4 % with 3 pairs to find one in: this may well be luck" in found[0].words


def test_run_pairwise_tests_keeps_small_differences() -> None:
    (found,) = run_pairwise_tests([_create_predictions("a", "1" * 2600), _create_predictions("b", "1" * 2599 + "0")])
    assert ": 0.04 points better (95 %: 0.0 to 0.1). " in found.words
    won, lost = "1" * 16 + "0" * 6, "0" * 16 + "1" * 6
    (found,) = run_pairwise_tests([_create_predictions("a", won), _create_predictions("b", lost)])
    assert mcnemar(16, 6) == pytest.approx(0.0525, abs=1e-4)
    assert " in 5.2 % of cases: this may well be luck; " in found.words  # not in 5 %, which is the level


def _create_run(recipe: dict[str, Any], metadata: dict[str, Any] | None = None) -> LoadedRun:
    preprocessing = Preprocessing(32, 32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    origin = {"weights": recipe["name"], "weights_sha256": None, "checkpoint": None}
    checkpoint = Checkpoint("best", recipe, ("a", "b"), preprocessing, "fc", "head", 1, {}, origin, {}, {})
    return LoadedRun(recipe["name"], Path(), Path(), checkpoint, (), metadata)


def test_diff_configs_lists_differences_only() -> None:
    head = {"name": "head", "freeze": "backbone", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    tail = {"name": "tail", "epochs": 1, "clip_grad_norm": None}
    one = {"name": "one", "seed": 0, "data": {"val": 0.1, "image_size": None, "augment": "flips"}, "stages": [head]}
    other = {
        **one,
        "name": "other",
        "data": {"val": 0.1, "image_size": 96, "augment": [{"name": "rotation", "degrees": 5}]},
        "stages": [{**head, "freeze": {"through": "layer1"}, "optimizer": {"name": "adam", "lr": 0.1}}, tail],
    }
    machine = {"torch": "2.10", "device": "cpu", "command": ["x"], "data": {"fingerprint": "f"}}
    runs = [
        _create_run(one, machine),
        _create_run(other, {**machine, "torch": "2.11", "command": ["y"]}),
        _create_run(one),
    ]
    assert [(difference.key, difference.values) for difference in diff_configs(runs)] == [
        ("data.image_size", (None, 96, None)),
        ("data.augment", ("flips", [{"name": "rotation", "degrees": 5}], "flips")),
        ("stages.head.freeze", ("backbone", {"through": "layer1"}, "backbone")),
        ("stages.head.optimizer.name", ("sgd", "adam", "sgd")),
        ("stages.head.optimizer.momentum", (0.9, None, 0.9)),
        ("stages.tail.epochs", (None, 1, None)),
        ("trained stages", (["head"], ["head", "tail"], ["head"])),
        ("manifest.torch", ("2.10", "2.11", None)),
    ]
    assert diff_configs([runs[0], runs[2]]) == ()
