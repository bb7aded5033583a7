"""What a comparison of runs says is true: of chance, and of what differs."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcli.analysis.comparison.contenders import Contender
from ftcli.analysis.comparison.differences import (
    Answers,
    bootstrap_difference,
    correct_holm,
    count_needed,
    mcnemar,
    tell_differences,
)
from ftcli.analysis.comparison.settings import find_settings
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import Checkpoint


def test_mcnemar_is_the_share_of_coin_throws_that_are_as_uneven() -> None:
    throws = [sum(throw) for throw in product((0, 1), repeat=6)]
    assert mcnemar(1, 5) == pytest.approx(sum(heads <= 1 or heads >= 5 for heads in throws) / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_runs_that_are_equally_good_seldom_differ_by_more_than_luck() -> None:
    random = np.random.default_rng(0)
    p_value = cache(mcnemar)
    counts = random.multinomial(200, [0.1, 0.1, 0.8], size=4000)
    rate = np.mean([p_value(int(ahead), int(behind)) < 0.05 for ahead, behind, _ in counts])
    assert 0.01 < rate <= 0.055  # two standard errors above 0.05 is 0.057; the exact test stays below 0.05


def test_holm_by_hand() -> None:
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert correct_holm([0.5, 0.001]) == pytest.approx((0.5, 0.002))
    assert correct_holm([0.9, 0.6]) == (1.0, 1.0)


def test_the_bootstrap_is_that_of_drawing_images() -> None:
    # Of three images one is right for the first alone: all resamples are 27, and 1 of them has it thrice.
    assert bootstrap_difference(1, 0, 3, seed=0) == (0, 1)
    own = np.array([1] * 31 + [-1] * 12 + [0] * 613)
    drawn = np.random.default_rng(1).choice(own, size=(10_000, len(own))).mean(1)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert bootstrap_difference(31, 12, 656, seed=0) == pytest.approx(tuple(expected), abs=0.0016)
    assert bootstrap_difference(0, 0, 5, seed=0) == (0, 0)


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    counts = np.random.default_rng(0).multinomial(300, [0.15, 0.1, 0.75], size=400)
    held = 0
    for ahead, behind, _ in counts:
        low, high = bootstrap_difference(int(ahead), int(behind), 300, seed=0)
        held += low <= 0.05 <= high
    assert 0.92 < held / 400 < 0.98


def test_with_the_images_that_are_needed_the_difference_is_told() -> None:
    images = count_needed(31, 20, 656)
    shares = [31 / 656, 20 / 656, 605 / 656]
    counts = np.random.default_rng(0).multinomial(images, shares, size=1000)
    assert np.mean([mcnemar(int(ahead), int(behind)) < 0.05 for ahead, behind, _ in counts]) == pytest.approx(
        0.8, abs=0.04
    )


def _answer(name: str, right: str) -> Answers:
    """A run that is right where the text has a 1; a 2 is another class, which is wrong too."""
    given = np.array([{"1": 1, "0": 0, "2": 2}[sign] for sign in right], dtype=np.int64)
    return Answers(name, given, np.ones(len(right), dtype=np.int64))


def test_a_difference_in_words() -> None:
    same, far = "1" * 613, "0" * 12 + "1" * 31
    frozen = _answer("frozen", same + far)
    scratch = _answer("scratch", same + "1" * 12 + "0" * 31)
    (found,) = tell_differences([scratch, frozen])
    assert (found.only_first, found.only_second, found.significant) == (12, 31, True)
    assert found.difference == pytest.approx(-19 / 656)
    assert found.p_value == found.p_corrected == mcnemar(12, 31)
    assert found.words == (
        "frozen is right on 31 images that scratch gets wrong, and wrong on 12 that scratch gets right: 2.9 points "
        f"better (95 %: {-100 * found.high:.1f} to {-100 * found.low:.1f}). Chance alone would give a difference as "
        "large in 0.54 % of cases: more than luck."
    )


def test_what_may_be_luck_in_words() -> None:
    one, other = _answer("a", "1" * 95 + "11100"), _answer("b", "1" * 95 + "00011")
    (found,) = tell_differences([one, other])
    assert not found.significant
    needed = -(-count_needed(3, 2, 100) // 100) * 100
    assert found.words == (
        "a is right on 3 images that b gets wrong, and wrong on 2 that b gets right: 1.0 points better (95 %: -3.0 to "
        "6.0). Chance alone would give a difference as large in 100 % of cases: this may well be luck; if it is none, "
        f"some {needed:,} images are needed to tell."
    )


def test_what_nothing_tells_apart_in_words() -> None:
    differences = tell_differences([_answer("a", "1100"), _answer("b", "1100"), _answer("c", "1102")])
    assert [found.words for found in differences] == [
        "a and b give every image the same class: nothing tells them apart.",
        "a and c are right on the same images: nothing tells them apart.",
        "b and c are right on the same images: nothing tells them apart.",
    ]
    (found,) = tell_differences([_answer("a", "1110"), _answer("b", "1101")])
    assert found.words == (
        "a is right on 1 image that b gets wrong, and wrong on 1 that b gets right: neither is better (95 %: -75.0 to "
        "75.0)."
    )


def test_several_pairs_are_corrected_for() -> None:
    runs = [_answer("a", "1" * 20), _answer("b", "0" * 6 + "1" * 14), _answer("c", "1" * 14 + "0" * 6)]
    found = tell_differences(runs)
    assert [each.p_value for each in found] == [mcnemar(6, 0), mcnemar(6, 0), 1.0]
    assert [each.p_corrected for each in found] == [3 * mcnemar(6, 0), 3 * mcnemar(6, 0), 1.0]
    assert not any(each.significant for each in found)
    assert "in 3.1 % of cases, or 9.4 % with 3 pairs to find one in: this may well be luck" in found[0].words


def test_words_do_not_round_a_difference_away() -> None:
    (found,) = tell_differences([_answer("a", "1" * 2600), _answer("b", "1" * 2599 + "0")])
    assert ": 0.04 points better (95 %: 0.0 to 0.1). " in found.words
    won, lost = "1" * 16 + "0" * 6, "0" * 16 + "1" * 6
    (found,) = tell_differences([_answer("a", won), _answer("b", lost)])
    assert mcnemar(16, 6) == pytest.approx(0.0525, abs=1e-4)
    assert " in 5.2 % of cases: this may well be luck; " in found.words  # not in 5 %, which is the level


def _make_contender(recipe: dict[str, Any], manifest: dict[str, Any] | None = None) -> Contender:
    pre = Preprocessing(32, 32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    origin = {"weights": recipe["name"], "weights_sha256": None, "checkpoint": None}
    checkpoint = Checkpoint("best", recipe, ("a", "b"), pre, "head", 1, {}, origin, {}, {})
    return Contender(recipe["name"], Path(), Path(), checkpoint, (), manifest)


def test_only_what_differs_is_told() -> None:
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
        _make_contender(one, machine),
        _make_contender(other, {**machine, "torch": "2.11", "command": ["y"]}),
        _make_contender(one),
    ]
    assert [(setting.key, setting.values) for setting in find_settings(runs)] == [
        ("data.image_size", (None, 96, None)),
        ("data.augment", ("flips", [{"name": "rotation", "degrees": 5}], "flips")),
        ("stages.head.freeze", ("backbone", {"through": "layer1"}, "backbone")),
        ("stages.head.optimizer.name", ("sgd", "adam", "sgd")),
        ("stages.head.optimizer.momentum", (0.9, None, 0.9)),
        ("stages.tail.epochs", (None, 1, None)),
        ("trained stages", (["head"], ["head", "tail"], ["head"])),
        ("manifest.torch", ("2.10", "2.11", None)),
    ]
    assert find_settings([runs[0], runs[2]]) == ()
