"""Tests that frozen tensors keep their bits, and that a change is detected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftcli.errors import RunError
from ftcli.models.freezing import check_frozen_unchanged, hash_tensors
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training import trainer
from tests.conftest import Ftcli

State = Mapping[str, torch.Tensor]


@pytest.fixture
def state_at(work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any]) -> Callable[..., State]:
    """Return the weights in the last.pt of a run that was killed after an epoch of a stage."""

    def train(stage: str, epoch: int, *options: str) -> State:
        folder = f"{stage}-{epoch}"
        kill = kill_by("SIGKILL", "log_epoch", stage, epoch)
        assert training(work_dir, "train", "r.yaml", "--out", folder, *options, kill=kill) == -9
        return read_checkpoint(work_dir / folder / "last.pt").state

    return train


def test_frozen_backbone_is_bit_identical_after_stage(state_at: Callable[..., State]) -> None:
    before, after, unfrozen = state_at("head", 0), state_at("head", 2), state_at("all", 2)
    assert any("running_mean" in name for name in before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) is not name.startswith("fc."), name
    assert not any(torch.equal(unfrozen[name], after[name]) for name in before if name.endswith("running_mean"))


def test_batch_norm_in_train_mode_is_detected(work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "set_train_mode", lambda model, _freezing: model.train())
    outcome = ftcli("train", "r.yaml", "--set", "stages.head.cache=off")
    assert outcome.code == 1
    assert outcome.errors == [
        "stage head: frozen tensors changed: conv1.1.running_mean, conv1.1.running_var, conv1.1.num_batches_tracked "
        "and 165 more; do not use the stage's weights, and report this with the recipe"
    ]


@pytest.mark.covers("stages.batch_norm")
def test_batch_norm_frozen_keeps_statistics_and_trains_affine(state_at: Callable[..., State]) -> None:
    frozen = ("--set", "stages.all.batch_norm=frozen")
    before, after = state_at("all", 0, *frozen), state_at("all", 2, *frozen)
    for name, tensor in before.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["stage4.3.branch2.1.bias"], before["stage4.3.branch2.1.bias"])


def test_check_frozen_unchanged_detects_one_bit_in_any_memory_format() -> None:
    weight = nn.Conv2d(3, 4, 3).weight.detach()
    before = hash_tensors({"weight": weight, "count": torch.tensor(3)})
    same = {"weight": weight.clone(memory_format=torch.channels_last), "count": torch.tensor(3)}
    check_frozen_unchanged(before, same, "head")
    same["weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(RunError) as caught:
        check_frozen_unchanged(before, same, "head")
    assert str(caught.value) == (
        "stage head: frozen tensors changed: weight; do not use the stage's weights, and report this with the recipe"
    )
