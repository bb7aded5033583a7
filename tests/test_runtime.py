"""Devices and random numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ftcli.errors import RecipeError
from ftcli.runtime import autocast, choose_device, derive_seed, hash_to_unit


def test_derive_seed_depends_only_on_keys() -> None:
    code = "from ftcli.runtime import derive_seed; print(derive_seed(0, 'all', 3, 'train/a/1.png'))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(elsewhere) == derive_seed(0, "all", 3, "train/a/1.png")


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
    shares = [hash_to_unit(0, str(i)) for i in range(10_000)]
    assert 0 <= min(shares) < 0.001
    assert 0.999 < max(shares) < 1
    assert abs(sum(shares) / len(shares) - 0.5) < 0.01


def test_choose_device_rejects_missing_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError) as caught:
        choose_device("gpu")
    assert str(caught.value) == "--device: 'gpu' is no device; give auto, cpu, cuda, cuda:1 or mps"
    if not torch.cuda.is_available():
        assert choose_device("auto").type in ("cpu", "mps")
        with pytest.raises(RecipeError) as caught:
            choose_device("cuda:3")
        assert str(caught.value).startswith("--device: 'cuda:3' is not on this machine; here are: cpu")


def test_autocast_uses_requested_precision() -> None:
    layer, inputs, cpu = torch.nn.Linear(4, 4), torch.ones(1, 4), torch.device("cpu")
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)):
        with autocast(cpu, precision):
            assert layer(inputs).dtype == dtype
