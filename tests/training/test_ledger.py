"""Where the time of a stage goes."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from ftcli.results import StageTimes
from ftcli.training.ledger import Ledger, name_bottleneck

CPU = torch.device("cpu")


def test_parts_add_up_to_the_whole_and_go_on_after_a_pause() -> None:
    ledger = Ledger(CPU)
    with ledger.measure("forward"):
        time.sleep(0.05)
    time.sleep(0.02)
    kept = ledger.keep()
    time.sleep(0.2)  # the run is stopped meanwhile
    ledger = Ledger(CPU, kept)
    with suppress(KeyError), ledger.measure("data"):
        time.sleep(0.03)
        raise KeyError
    times = ledger.sum_up()
    assert 0.05 <= times.forward < 0.1
    assert 0.03 <= times.data < 0.08
    assert 0.02 <= times.other < 0.07
    assert sum(times.to_dict().values()) == pytest.approx(ledger.seconds, abs=0.02)


def test_a_second_within_two_parts_counts_once_as_the_inner_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("ftcli.training.ledger.time", SimpleNamespace(perf_counter=lambda: now))
    ledger = Ledger(CPU)
    with ledger.measure("data"):
        pass_by(2)
        for _ in range(2):
            with suppress(KeyError), ledger.measure("frozen"):
                pass_by(3)
                raise KeyError
        with ledger.measure("compiling"), ledger.measure("data"):
            pass_by(0.5)
    pass_by(1)
    with ledger.measure("validation"):
        pass_by(4)
    assert ledger.sum_up() == StageTimes(data=2.5, frozen=6.0, validation=4.0, other=1.0)


def test_the_bottleneck_is_the_part_that_takes_most_with_what_would_shorten_it() -> None:
    first, second = StageTimes(data=3.0, forward=1.0), StageTimes(data=3.0, backward=2.0, other=1.0)
    assert name_bottleneck(first + second) == (
        "60% of the time went into waiting for images; raise data.num_workers, or make the image files smaller"
    )
    assert name_bottleneck(StageTimes(frozen=2.0)) == (
        "100% of the time went into the frozen part and the decoding of images; a later run reads what the cache could "
        "keep of them"
    )
    assert name_bottleneck(StageTimes(compiling=3.0, forward=1.0)) == (
        "75% of the time went into compiling the steps; train more epochs, or set compile: false"
    )
    assert name_bottleneck(StageTimes()) is None
