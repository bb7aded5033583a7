"""Tests of training estimates: memory counted by hand in small cases, and times that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ftcli.models.factory import create_model
from ftcli.recipe.loading import read_recipe
from ftcli.results import NullReporter, StageEstimate
from ftcli.training import estimate as estimate_module
from ftcli.training.estimate import ActivationMemoryCounter, choose_profiled_batch_size, estimate_training
from tests.conftest import Ftcli


def estimate(*overrides: str) -> tuple[StageEstimate, ...]:
    return estimate_training(read_recipe(Path("r.yaml"), ("precision=float32", *overrides)), NullReporter())


def test_estimate_counts_memory_to_the_byte(work_dir: Path, ftcli: Ftcli) -> None:
    trainable_counts = [stage["trainable"] for stage in ftcli("inspect", "r.yaml", "--json").json["stages"]]
    head, full = estimate()
    assert trainable_counts[0] == 1024 * 16 + 16 + 16 * 2 + 2
    assert [stage.memory.gradients for stage in (head, full)] == [4 * count for count in trainable_counts]
    # SGD stores one value per parameter, AdamW two, and a step count per tensor.
    tensors = len(list(create_model("shufflenet_v2_x0_5", True).parameters())) + 2
    assert head.memory.optimizer == 4 * trainable_counts[0]
    assert full.memory.optimizer == 4 * (2 * trainable_counts[1] + tensors)
    assert full.memory.parameters > full.memory.gradients  # BatchNorm statistics are buffers
    assert head.memory.activations < full.memory.activations / 10
    for stage in (head, full):
        memory = stage.memory
        parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.working)
        assert stage.memory_bytes == sum(parts) + memory.process
        assert memory.process > 100e6


def test_activation_memory_counter_counts_each_storage_once() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    inputs = torch.randn(7, 10)
    counter = ActivationMemoryCounter(model)
    with counter:
        model(inputs).sum()
    # The input, and the output of the ReLU, which the ReLU and the next layer share; weights are not counted.
    assert counter.num_bytes == 4 * 7 * (10 + 20)


def test_estimate_activations_scale_with_batch_size(work_dir: Path) -> None:
    few, many = (estimate(f"data.batch_size={n}")[1].memory.activations for n in (8, 16))
    assert many == pytest.approx(2 * few, rel=0.02)


def test_estimate_limits_batch_size_to_dataset(work_dir: Path) -> None:
    exact, larger = (estimate(f"data.batch_size={n}")[1] for n in (30, 100_000))
    assert (larger.batch_size, larger.measured_batch) == (30, 30)
    assert larger.memory.activations == exact.memory.activations


def test_estimate_times_add_up(work_dir: Path) -> None:
    for stage in estimate("stages.head.cache=off"):
        assert (stage.kept_bytes, stage.seconds_frozen) == (0, 0.0)
        assert stage.seconds_per_step is not None
        assert (stage.images, stage.validation_images, stage.from_data) == (30, 10, True)
        assert stage.measured_batch == stage.batch_size == 8
        assert stage.seconds_per_image_read is not None
        train = 30 * (stage.seconds_per_step / 8 + stage.seconds_per_image_read)
        val = 10 * (stage.seconds_per_validation_image + stage.seconds_per_image_read)
        assert stage.seconds == pytest.approx(2 * train + 3 * val)


def test_estimate_counts_cached_features_once(work_dir: Path) -> None:
    head, full = estimate("stages.head.epochs=50", "stages.head.cache.views=3")
    off = estimate("stages.head.epochs=50", "stages.head.cache=off")[0]
    assert head.kept_bytes == (3 * 30 + 10) * 1024 * 4  # features have 1,024 float32 numbers
    assert (full.kept_bytes, full.seconds_frozen) == (0, 0.0)
    assert head.seconds_per_step is not None
    assert off.seconds_per_step is not None
    assert head.seconds_per_step < off.seconds_per_step / 2
    assert head.seconds < off.seconds / 4
    steps = 50 * 30 * head.seconds_per_step / 8 + 51 * 10 * head.seconds_per_validation_image
    assert head.seconds == pytest.approx(head.seconds_frozen + steps)
    assert head.memory.activations == off.memory.activations  # only the activations of the head are saved either way
    assert estimate("data.augment=none")[0].kept_bytes == (30 + 10) * 1024 * 4


def test_estimate_over_cache_limit_is_uncached(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = estimate("stages.head.epochs=200")[0]
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "100 kB")
    uncached = estimate("stages.head.epochs=200")[0]
    assert cached.kept_bytes > uncached.kept_bytes == 0
    assert uncached.seconds_frozen > 4 * cached.seconds_frozen  # 200 epochs, not 4 views
    assert uncached.seconds_per_step is not None
    steps = 200 * 30 * uncached.seconds_per_step / 8 + 201 * 10 * uncached.seconds_per_validation_image
    assert uncached.seconds == pytest.approx(uncached.seconds_frozen + steps)


def test_estimate_head_fit_has_no_steps(work_dir: Path) -> None:
    text = Path("r.yaml").read_text().replace("hidden: [16]", "hidden: []")
    sgd_settings = "epochs: 2\n    optimizer: {name: sgd, lr: 0.05}"
    assert sgd_settings in text
    Path("r.yaml").write_text(text.replace(sgd_settings, "fit: logistic_regression"))
    head, full = estimate()
    assert (head.stage, head.epochs, head.seconds_per_step) == ("head", 1, None)
    assert head.kept_bytes == (30 + 10) * 1024 * 4
    assert head.memory.gradients == head.memory.optimizer == 0
    assert head.seconds > head.seconds_frozen > 0
    assert full.seconds_per_step is not None


def test_estimate_without_data_assumes_default_num_images(work_dir: Path) -> None:
    for stage in estimate("data.root=nowhere", "data.classes=[a, b]"):
        assert (stage.images, stage.validation_images, stage.from_data) == (1000, 0, False)
        assert stage.seconds_per_step is not None
        assert stage.seconds == pytest.approx(stage.seconds_frozen + 2 * 1000 * stage.seconds_per_step / 8)
    assert not Path("nowhere").exists()


def test_choose_batch_size_limits_step_time(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_profiled_batch_size(32, 4, 0.1) == 32
    assert choose_profiled_batch_size(32, 4, 2.0) == 6
    assert choose_profiled_batch_size(32, 4, 100.0) == 2
    assert choose_profiled_batch_size(1, 1, 0.1) == 2
    unscaled = estimate("data.batch_size=16")[1]
    monkeypatch.setattr(estimate_module, "MAX_PROFILED_STEP_SECONDS", 1e-9)
    scaled = estimate("data.batch_size=16")[1]
    assert (scaled.batch_size, scaled.measured_batch) == (16, 2)
    assert scaled.memory.activations == pytest.approx(unscaled.memory.activations, rel=0.1)


def test_estimate_changes_no_state(work_dir: Path) -> None:
    before = torch.get_rng_state()
    estimate()
    assert torch.equal(torch.get_rng_state(), before)
    assert [path.name for path in work_dir.iterdir()] == ["r.yaml"]
