"""Tests and intervals of differences agree with simulations, and their sentences with the numbers."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest

from ftcli.comparison.significance import (
    RunPredictions,
    apply_holm_correction,
    bootstrap_difference,
    compute_sample_size,
    mcnemar,
    run_pairwise_tests,
)


def test_mcnemar_matches_coin_flips() -> None:
    num_heads = [sum(flips) for flips in product((0, 1), repeat=6)]
    assert mcnemar(1, 5) == pytest.approx(sum(count <= 1 or count >= 5 for count in num_heads) / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_mcnemar_false_positive_rate() -> None:
    p_value = cache(mcnemar)
    counts = np.random.default_rng(0).multinomial(200, [0.1, 0.1, 0.8], size=4000)
    rate = np.mean([p_value(int(only_first), int(only_second)) < 0.05 for only_first, only_second, _ in counts])
    assert 0.01 < rate <= 0.055  # 0.05 plus two standard errors is 0.057; the exact test is conservative


def test_apply_holm_correction_by_hand() -> None:
    assert apply_holm_correction([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert apply_holm_correction([0.5, 0.001]) == pytest.approx((0.5, 0.002))
    assert apply_holm_correction([0.9, 0.6]) == (1.0, 1.0)


def test_bootstrap_difference_matches_resampling_images() -> None:
    # One of three images is correct for the first run alone; 1 of 27 resamples has it three times.
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
    """Create predictions that are correct at each 1; 0 and 2 are two wrong classes."""
    predicted = np.array([{"1": 1, "0": 0, "2": 2}[char] for char in outcomes], dtype=np.int64)
    return RunPredictions(name, predicted, np.ones(len(outcomes), dtype=np.int64))


def test_run_pairwise_tests_describes_a_significant_difference() -> None:
    same, far = "1" * 613, "0" * 12 + "1" * 31
    frozen = _create_predictions("frozen", same + far)
    scratch = _create_predictions("scratch", same + "1" * 12 + "0" * 31)
    (test,) = run_pairwise_tests([scratch, frozen])
    assert (test.only_first, test.only_second, test.significant) == (12, 31, True)
    assert test.difference == pytest.approx(-19 / 656)
    assert test.p_value == test.p_corrected == mcnemar(12, 31)
    assert test.words == (
        "frozen is correct on 31 images where scratch is wrong, and wrong on 12 where scratch is correct: 2.9 points "
        f"better (95% interval {-100 * test.high:.1f} to {-100 * test.low:.1f}). "
        "McNemar's test: p = 0.0054: significant."
    )


def test_run_pairwise_tests_describes_a_nonsignificant_difference() -> None:
    runs = [_create_predictions("a", "1" * 95 + "11100"), _create_predictions("b", "1" * 95 + "00011")]
    (test,) = run_pairwise_tests(runs)
    assert not test.significant
    sample_size = -(-compute_sample_size(3, 2, 100) // 100) * 100
    assert test.words == (
        "a is correct on 3 images where b is wrong, and wrong on 2 where b is correct: 1.0 points better (95% interval "
        "-3.0 to 6.0). McNemar's test: p = 1: not significant; a difference of this size needs about "
        f"{sample_size:,} images."
    )


def test_run_pairwise_tests_describes_equal_predictions() -> None:
    differences = run_pairwise_tests(
        [_create_predictions("a", "1100"), _create_predictions("b", "1100"), _create_predictions("c", "1102")]
    )
    assert [test.words for test in differences] == [
        "a and b predict the same class for every image.",
        "a and c are correct on the same images.",
        "b and c are correct on the same images.",
    ]
    (test,) = run_pairwise_tests([_create_predictions("a", "1110"), _create_predictions("b", "1101")])
    assert test.words == (
        "a is correct on 1 image where b is wrong, and wrong on 1 where b is correct: equal accuracy (95% interval "
        "-75.0 to 75.0)."
    )


def test_run_pairwise_tests_corrects_for_several_pairs() -> None:
    runs = [
        _create_predictions("a", "1" * 20),
        _create_predictions("b", "0" * 6 + "1" * 14),
        _create_predictions("c", "1" * 14 + "0" * 6),
    ]
    tests = run_pairwise_tests(runs)
    assert [test.p_value for test in tests] == [mcnemar(6, 0), mcnemar(6, 0), 1.0]
    assert [test.p_corrected for test in tests] == [3 * mcnemar(6, 0), 3 * mcnemar(6, 0), 1.0]
    assert not any(test.significant for test in tests)
    assert ": p = 0.031, p = 0.094 with Holm correction for 3 pairs: not significant; " in tests[0].words


def test_run_pairwise_tests_keeps_small_differences() -> None:
    (test,) = run_pairwise_tests([_create_predictions("a", "1" * 2600), _create_predictions("b", "1" * 2599 + "0")])
    assert ": 0.04 points better (95% interval 0.0 to 0.1). " in test.words
    won, lost = "1" * 16 + "0" * 6, "0" * 16 + "1" * 6
    (test,) = run_pairwise_tests([_create_predictions("a", won), _create_predictions("b", lost)])
    assert mcnemar(16, 6) == pytest.approx(0.0525, abs=1e-4)
    assert ": p = 0.052: not significant; " in test.words  # not rounded to the significance level
