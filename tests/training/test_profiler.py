"""Tests of the stage profiler."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from ftcli.results import StageTimes
from ftcli.training.profiler import StageProfiler, describe_bottleneck

CPU = torch.device("cpu")


def test_summary_adds_up_after_restore() -> None:
    profiler = StageProfiler(CPU)
    with profiler.measure("forward"):
        time.sleep(0.05)
    time.sleep(0.02)
    state_dict = profiler.state_dict()
    time.sleep(0.2)  # the run is interrupted meanwhile
    profiler = StageProfiler(CPU, state_dict)
    with suppress(KeyError), profiler.measure("data"):
        time.sleep(0.03)
        raise KeyError
    times = profiler.summary()
    assert 0.05 <= times.forward < 0.1
    assert 0.03 <= times.data < 0.08
    assert 0.02 <= times.other < 0.07
    assert sum(times.to_dict().values()) == pytest.approx(profiler.total_seconds, abs=0.02)


def test_measure_counts_nested_seconds_for_inner_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def advance_clock(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("ftcli.training.profiler.time", SimpleNamespace(perf_counter=lambda: now))
    profiler = StageProfiler(CPU)
    with profiler.measure("data"):
        advance_clock(2)
        for _ in range(2):
            with suppress(KeyError), profiler.measure("frozen"):
                advance_clock(3)
                raise KeyError
        with profiler.measure("compiling"), profiler.measure("data"):
            advance_clock(0.5)
    advance_clock(1)
    with profiler.measure("validation"):
        advance_clock(4)
    assert profiler.summary() == StageTimes(data=2.5, frozen=6.0, validation=4.0, other=1.0)


def test_describe_bottleneck_names_largest_part_and_remedy() -> None:
    first, second = StageTimes(data=3.0, forward=1.0), StageTimes(data=3.0, backward=2.0, other=1.0)
    assert describe_bottleneck(first + second) == (
        "60% of the time was spent on data loading; raise data.num_workers, or use smaller image files"
    )
    assert describe_bottleneck(StageTimes(frozen=2.0)) == (
        "100% of the time was spent on feature extraction; later runs read the features that fit in the cache"
    )
    assert describe_bottleneck(StageTimes(compiling=3.0, forward=1.0)) == (
        "75% of the time was spent on compiling the steps; train more epochs, or set compile: false"
    )
    assert describe_bottleneck(StageTimes()) is None
