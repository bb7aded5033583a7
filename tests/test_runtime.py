"""Tests of devices, number formats and random seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ftcli.errors import RecipeError
from ftcli.runtime import autocast, choose_device, derive_seed, hash_to_unit, resolve_precision, supports_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_derive_seed_depends_only_on_keys() -> None:
    code = "from ftcli.runtime import derive_seed; print(derive_seed(0, 'all', 3, 'train/a/1.png'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == derive_seed(0, "all", 3, "train/a/1.png")


def test_derive_seed_separates_similar_keys() -> None:
    keys: list[tuple[int | str, ...]] = [
        (0, "a", 1),
        (0, "a", 11),
        (0, "a1", 1),
        (1, "a", 1),
        (0, "a", "1"),
        (0, "a\0", 1),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_hash_to_unit_is_uniform() -> None:
    values = [hash_to_unit(0, str(i)) for i in range(10_000)]
    assert 0 <= min(values) < 0.001
    assert 0.999 < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01


def test_choose_device_rejects_missing_device() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(RecipeError) as caught:
        choose_device("gpu")
    assert str(caught.value) == "--device: 'gpu' is not a device; give auto, cpu, cuda, cuda:1 or mps"
    if not torch.cuda.is_available():
        assert choose_device("auto").type in ("cpu", "mps")
        with pytest.raises(RecipeError) as caught:
            choose_device("cuda:3")
        assert str(caught.value).startswith(
            "--device: 'cuda:3' is not available on this machine; give auto or one of: cpu"
        )


def test_autocast_uses_requested_precision() -> None:
    layer, inputs = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)):
        with autocast(CPU, precision):
            assert layer(inputs).dtype == dtype


def test_resolve_precision_uses_measurement_of_same_device_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.runtime.supports_bfloat16", lambda _: True)
    assert resolve_precision("auto", CPU, {}) == "float32"
    assert resolve_precision("auto", CPU, {"cpu": "bfloat16"}) == "bfloat16"
    assert resolve_precision("auto", CPU, {"cuda": "bfloat16"}) == "float32"
    assert resolve_precision("auto", CUDA, {}) == "bfloat16"
    assert resolve_precision("auto", CUDA, {"cuda": "float32"}) == "float32"
    assert resolve_precision("float32", CPU, {"cpu": "bfloat16"}) == "float32"
    monkeypatch.setattr("ftcli.runtime.supports_bfloat16", lambda _: False)
    assert resolve_precision("auto", CPU, {"cpu": "bfloat16"}) == "float32"
    assert not supports_bfloat16(torch.device("mps"))
