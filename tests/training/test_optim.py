"""Optimizers and learning rates do what the recipe says."""

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
    built = build_optimizer(
        model,
        parse_optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_norm_and_bias=False),
        {"2.weight": 10.0, "2.bias": 10.0},
        {"0.bias", "1.weight", "1.bias", "2.bias"},
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        tuple(names[id(parameter)] for parameter in group["params"]): (group["lr_mult"], group["weight_decay"])
        for group in built.param_groups
    }
    assert groups == {
        ("0.bias", "1.weight", "1.bias"): (1.0, 0.0),
        ("2.weight",): (10.0, 0.5),
        ("2.bias",): (10.0, 0.0),
    }
    set_lr(built, 0.01)
    assert sorted(group["lr"] for group in built.param_groups) == [0.01, 0.1, 0.1]


def test_build_optimizer_decays_all_parameters_by_default() -> None:
    built = build_optimizer(build_model(), parse_optimizer(name="sgd", lr=0.1, weight_decay=0.5), {}, {"0.bias"})
    assert [group["weight_decay"] for group in built.param_groups] == [0.5]


@pytest.mark.parametrize(
    ("plain", "kind", "settings"),
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
def test_build_optimizer_passes_settings(plain: dict[str, Any], kind: type, settings: dict[str, Any]) -> None:
    built = build_optimizer(build_model(), parse_optimizer(lr=0.1, **plain), {}, ())
    assert type(built) is kind
    assert {key: built.defaults[key] for key in settings} == settings


def test_lr_at_step_constant_with_warmup() -> None:
    assert list_lrs({"name": "constant"}) == [1.0] * 40
    assert list_lrs({"name": "constant", "warmup": 0.1})[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.covers("stages.schedule.warmup")
@pytest.mark.parametrize(
    "plain", [{"name": "constant"}, {"name": "step", "every": 9}, {"name": "cosine"}, {"name": "one_cycle"}]
)
def test_lr_at_step_rises_during_warmup(plain: dict[str, Any]) -> None:
    lrs = list_lrs({**plain, "warmup": 0.5})
    assert all(one < other for one, other in itertools.pairwise(lrs[:20]))
    assert lrs[19] == max(lrs)


@pytest.mark.covers("stages.schedule", "stages.schedule.step_size", "stages.schedule.gamma")
def test_lr_at_step_step_decay_counts_epochs() -> None:
    assert list_lrs({"name": "step", "every": 2, "gamma": 0.5}) == [1.0] * 20 + [0.5] * 20


def test_lr_at_step_cosine_matches_pytorch() -> None:
    built = torch.optim.SGD(build_model().parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(built, 40)
    for lr in list_lrs({"name": "cosine"}):
        assert math.isclose(lr, scheduler.get_last_lr()[0], abs_tol=1e-12)
        built.step()
        scheduler.step()


def test_lr_at_step_one_cycle_matches_pytorch() -> None:
    built = torch.optim.SGD(build_model().parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(built, 1.0, total_steps=40, pct_start=0.3, cycle_momentum=False)
    lrs = list_lrs({"name": "one_cycle"})
    for step in range(40):
        assert math.isclose(lrs[step], scheduler.get_last_lr()[0], abs_tol=1e-12)
        built.step()
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
    assert [choose_fused(each, small) for each in (sgd, adam, adamw)] == [True, True, True]
    assert [choose_fused(each, large) for each in (sgd, adam, adamw)] == [None, True, True]
    assert [choose_fused(each, meta) for each in (sgd, adam, adamw)] == [None, None, None]


OPTIMIZERS = [
    {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.1, "weight_decay": 0.01},
    {"name": "adamw", "lr": 0.1, "weight_decay": 0.01},
]


def take_steps(model: nn.Module, built: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        built.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        set_lr(built, 0.01 / (step + 1))
        built.step()


def build_model_and_optimizer(settings: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, build_optimizer(model, parse_optimizer(**settings), {"2.weight": 10.0}, ())


@pytest.mark.parametrize("plain", OPTIMIZERS, ids=lambda plain: plain["name"])
def test_fused_optimizer_matches_unfused_and_resumes_exactly(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, built = build_model_and_optimizer(plain)
    assert built.defaults["fused"] is True
    take_steps(uninterrupted, built, range(6))
    first, half = build_model_and_optimizer(plain)
    take_steps(first, half, range(3))
    second, rest = build_model_and_optimizer(plain)
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    take_steps(second, rest, range(3, 6))
    monkeypatch.setattr(optim, "choose_fused", lambda *_: False)
    other, unfused = build_model_and_optimizer(plain)
    take_steps(other, unfused, range(6))
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.allclose(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-5), name
