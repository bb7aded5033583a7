"""Frozen means frozen, and what breaks it is caught."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ftcli.errors import RunError
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training import loop
from ftcli.training.proof import digest_tensors, prove_unmoved
from tests.conftest import Ftcli


def test_a_frozen_backbone_does_not_move_by_a_bit(finished: Path, ftcli: Ftcli) -> None:
    # The run began from random weights that its seed alone decides; a run of no use shows them.
    started = ftcli("train", "r.yaml", "--stage", "head", "--set", "stages.head.optimizer.lr=1e-30", "--json").json
    before = read_checkpoint(Path(started["run"]) / "last.pt").state
    after = read_checkpoint(finished / "runs/photos/stages/head.pt").state
    trained = read_checkpoint(finished / "runs/photos/stages/all.pt").state
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("fc."))
    assert any("running_mean" in name for name in before)
    assert not torch.equal(after["fc.0.weight"], before["fc.0.weight"])
    assert not any(torch.equal(trained[name], after[name]) for name in before if name.endswith("running_mean"))


def test_batch_norm_left_in_train_mode_is_caught(
    workplace: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "set_modes", lambda model, _freezing: model.train())
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 1
    assert outcome.faults == [
        "stage head: frozen tensors moved: conv1.1.running_mean, conv1.1.running_var, conv1.1.num_batches_tracked and "
        "165 more; the stage's result is not to be trusted, please report this with the recipe"
    ]


def test_frozen_statistics_stay_while_the_rest_of_batch_norm_trains(finished: Path, ftcli: Ftcli) -> None:
    frozen = ("--set", "stages.all.batch_norm=frozen")
    best = ftcli("train", "--resume", "runs/photos/stages/head.pt", *frozen, "--json").json["run"]
    before = read_checkpoint(finished / "runs/photos/stages/head.pt").state
    after = read_checkpoint(Path(best) / "last.pt").state
    for name, tensor in before.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["conv1.1.weight"], before["conv1.1.weight"])


def test_the_proof_sees_a_single_bit_in_any_memory_format() -> None:
    weight = nn.Conv2d(3, 4, 3).weight.detach()
    before = digest_tensors({"weight": weight, "count": torch.tensor(3)})
    same = {"weight": weight.clone(memory_format=torch.channels_last), "count": torch.tensor(3)}
    prove_unmoved(before, same, "head")
    same["weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(RunError) as caught:
        prove_unmoved(before, same, "head")
    assert str(caught.value) == (
        "stage head: frozen tensors moved: weight; the stage's result is not to be trusted, please report this with "
        "the recipe"
    )
