"""Tests of optimizers and learning rate schedules."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from ftcli.recipe import schema
from ftcli.training import optim
from ftcli.training.optim import build_optimizer, choose_fused, lr_at_step, set_lr


def parse_optimizer(**settings: Any) -> schema.Optimizer:
    parsed: schema.Optimizer = TypeAdapter(schema.Optimizer).validate_python(settings)
    return parsed


def parse_schedule(**settings: Any) -> schema.Schedule:
    parsed: schema.Schedule = TypeAdapter(schema.Schedule).validate_python(settings)
    return parsed


def list_lrs(settings: dict[str, Any], steps: int = 10, epochs: int = 4) -> list[float]:
    return [lr_at_step(parse_schedule(**settings), 1.0, step, steps, epochs) for step in range(steps * epochs)]


def build_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.covers("stages.optimizer.weight_decay", "stages.optimizer.decay_norm_and_bias")
def test_build_optimizer_groups_by_lr_mult_and_weight_decay() -> None:
    model = build_model()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(
        model,
        parse_optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_norm_and_bias=False),
        {"2.weight": 10.0, "2.bias": 10.0},
        {"0.bias", "1.weight", "1.bias", "2.bias"},
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        tuple(names[id(parameter)] for parameter in group["params"]): (group["lr_mult"], group["weight_decay"])
        for group in optimizer.param_groups
    }
    assert groups == {
        ("0.bias", "1.weight", "1.bias"): (1.0, 0.0),
        ("2.weight",): (10.0, 0.5),
        ("2.bias",): (10.0, 0.0),
    }
    set_lr(optimizer, 0.01)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.01, 0.1, 0.1]


def test_build_optimizer_decays_all_parameters_by_default() -> None:
    optimizer = build_optimizer(build_model(), parse_optimizer(name="sgd", lr=0.1, weight_decay=0.5), {}, {"0.bias"})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5]


@pytest.mark.parametrize(
    ("settings", "optimizer_class", "defaults"),
    [
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
        ({"name": "adam", "betas": [0.8, 0.9]}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ({"name": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
@pytest.mark.covers(
    "stages.optimizer",
    "stages.optimizer.momentum",
    "stages.optimizer.nesterov",
    "stages.optimizer.betas",
)
def test_build_optimizer_passes_settings(
    settings: dict[str, Any], optimizer_class: type, defaults: dict[str, Any]
) -> None:
    optimizer = build_optimizer(build_model(), parse_optimizer(lr=0.1, **settings), {}, ())
    assert type(optimizer) is optimizer_class
    assert {key: optimizer.defaults[key] for key in defaults} == defaults


def test_lr_at_step_constant_with_warmup() -> None:
    assert list_lrs({"name": "constant"}) == [1.0] * 40
    assert list_lrs({"name": "constant", "warmup": 0.1})[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.covers("stages.schedule.warmup")
@pytest.mark.parametrize(
    "settings", [{"name": "constant"}, {"name": "step", "step_size": 9}, {"name": "cosine"}, {"name": "one_cycle"}]
)
def test_lr_at_step_rises_during_warmup(settings: dict[str, Any]) -> None:
    lrs = list_lrs({**settings, "warmup": 0.5})
    assert all(lr < next_lr for lr, next_lr in itertools.pairwise(lrs[:20]))
    assert lrs[19] == max(lrs)


@pytest.mark.covers("stages.schedule", "stages.schedule.step_size", "stages.schedule.gamma")
def test_lr_at_step_step_decay_counts_epochs() -> None:
    assert list_lrs({"name": "step", "step_size": 2, "gamma": 0.5}) == [1.0] * 20 + [0.5] * 20


def test_lr_at_step_cosine_matches_pytorch() -> None:
    optimizer = torch.optim.SGD(build_model().parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for lr in list_lrs({"name": "cosine"}):
        assert math.isclose(lr, scheduler.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        scheduler.step()


def test_lr_at_step_one_cycle_matches_pytorch() -> None:
    optimizer = torch.optim.SGD(build_model().parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=40, pct_start=0.3, cycle_momentum=False)
    lrs = list_lrs({"name": "one_cycle"})
    for step in range(40):
        assert math.isclose(lrs[step], scheduler.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        scheduler.step()
    assert math.isclose(lrs[0], 1 / 25)
    assert math.isclose(lrs[-1], 1 / 250_000)


def test_lr_at_step_one_cycle_of_few_steps_reaches_peak() -> None:
    assert list_lrs({"name": "one_cycle"}, steps=1, epochs=1) == [1.0]
    assert list_lrs({"name": "one_cycle"}, steps=2, epochs=1) == [1.0, 1 / 250_000]


def test_choose_fused_picks_fastest_kernel() -> None:
    small, large = [nn.Parameter(torch.zeros(100))], [nn.Parameter(torch.zeros(2**17))]
    meta = [nn.Parameter(torch.zeros(100, device="meta"))]
    sgd, adam, adamw = (parse_optimizer(name=name, lr=0.1) for name in ("sgd", "adam", "adamw"))
    assert [choose_fused(optimizer, small) for optimizer in (sgd, adam, adamw)] == [True, True, True]
    assert [choose_fused(optimizer, large) for optimizer in (sgd, adam, adamw)] == [None, True, True]
    assert [choose_fused(optimizer, meta) for optimizer in (sgd, adam, adamw)] == [None, None, None]


OPTIMIZERS = [
    {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.1, "weight_decay": 0.01},
    {"name": "adamw", "lr": 0.1, "weight_decay": 0.01},
]


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        set_lr(optimizer, 0.01 / (step + 1))
        optimizer.step()


def build_model_and_optimizer(settings: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, build_optimizer(model, parse_optimizer(**settings), {"2.weight": 10.0}, ())


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda settings: settings["name"])
def test_fused_optimizer_matches_unfused_and_resumes_exactly(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, optimizer = build_model_and_optimizer(settings)
    assert optimizer.defaults["fused"] is True
    take_steps(uninterrupted, optimizer, range(6))
    interrupted, optimizer = build_model_and_optimizer(settings)
    take_steps(interrupted, optimizer, range(3))
    resumed, resumed_optimizer = build_model_and_optimizer(settings)
    resumed.load_state_dict(interrupted.state_dict())
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    take_steps(resumed, resumed_optimizer, range(3, 6))
    monkeypatch.setattr(optim, "choose_fused", lambda *_: False)
    unfused, optimizer = build_model_and_optimizer(settings)
    take_steps(unfused, optimizer, range(6))
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.allclose(tensor, unfused.state_dict()[name], rtol=1e-4, atol=1e-5), name
