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
from ftcli.training.optim import build_optimizer, choose_fused, rate_at, set_rate


def optimizer(**plain: Any) -> schema.Optimizer:
    made: schema.Optimizer = TypeAdapter(schema.Optimizer).validate_python(plain)
    return made


def schedule(**plain: Any) -> schema.Schedule:
    made: schema.Schedule = TypeAdapter(schema.Schedule).validate_python(plain)
    return made


def rates(plain: dict[str, Any], steps: int = 10, epochs: int = 4) -> list[float]:
    return [rate_at(schedule(**plain), 1.0, step, steps, epochs) for step in range(steps * epochs)]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.covers("stages.optimizer.weight_decay", "stages.optimizer.decay_norm_and_bias")
def test_groups_have_their_multiple_and_their_decay() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    built = build_optimizer(
        model,
        optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_norm_and_bias=False),
        {"2.weight": 10.0, "2.bias": 10.0},
        {"0.bias", "1.weight", "1.bias", "2.bias"},
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        tuple(names[id(parameter)] for parameter in group["params"]): (group["lr_mult"], group["weight_decay"])
        for group in built.param_groups
    }
    assert found == {
        ("0.bias", "1.weight", "1.bias"): (1.0, 0.0),
        ("2.weight",): (10.0, 0.5),
        ("2.bias",): (10.0, 0.0),
    }
    set_rate(built, 0.01)
    assert sorted(group["lr"] for group in built.param_groups) == [0.01, 0.1, 0.1]


def test_decay_reaches_everything_unless_asked_otherwise() -> None:
    built = build_optimizer(network(), optimizer(name="sgd", lr=0.1, weight_decay=0.5), {}, {"0.bias"})
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
def test_settings_reach_the_optimizer(plain: dict[str, Any], kind: type, settings: dict[str, Any]) -> None:
    built = build_optimizer(network(), optimizer(lr=0.1, **plain), {}, ())
    assert type(built) is kind
    assert {key: built.defaults[key] for key in settings} == settings


def test_constant_and_warmup() -> None:
    assert rates({"name": "constant"}) == [1.0] * 40
    assert rates({"name": "constant", "warmup": 0.1})[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.covers("stages.schedule.warmup")
@pytest.mark.parametrize(
    "plain", [{"name": "constant"}, {"name": "step", "every": 9}, {"name": "cosine"}, {"name": "one_cycle"}]
)
def test_every_schedule_rises_over_its_warmup(plain: dict[str, Any]) -> None:
    made = rates({**plain, "warmup": 0.5})
    assert all(one < other for one, other in itertools.pairwise(made[:20]))
    assert made[19] == max(made)


@pytest.mark.covers("stages.schedule", "stages.schedule.step_size", "stages.schedule.gamma")
def test_step_decay_counts_epochs() -> None:
    assert rates({"name": "step", "every": 2, "gamma": 0.5}) == [1.0] * 20 + [0.5] * 20


def test_cosine_is_that_of_pytorch() -> None:
    built = torch.optim.SGD(network().parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(built, 40)
    for ours in rates({"name": "cosine"}):
        assert math.isclose(ours, theirs.get_last_lr()[0], abs_tol=1e-12)
        built.step()
        theirs.step()


def test_one_cycle_is_that_of_pytorch() -> None:
    built = torch.optim.SGD(network().parameters(), lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(built, 1.0, total_steps=40, pct_start=0.3, cycle_momentum=False)
    ours = rates({"name": "one_cycle"})
    for step in range(40):
        assert math.isclose(ours[step], theirs.get_last_lr()[0], abs_tol=1e-12)
        built.step()
        theirs.step()
    assert math.isclose(ours[0], 1 / 25)
    assert math.isclose(ours[-1], 1 / 250_000)


def test_one_cycle_of_a_few_steps_still_reaches_the_rate() -> None:
    assert rates({"name": "one_cycle"}, steps=1, epochs=1) == [1.0]
    assert rates({"name": "one_cycle"}, steps=2, epochs=1) == [1.0, 1 / 250_000]


def test_fused_kernels_are_taken_where_they_are_the_fastest() -> None:
    small, large = [nn.Parameter(torch.zeros(100))], [nn.Parameter(torch.zeros(2**17))]
    meta = [nn.Parameter(torch.zeros(100, device="meta"))]
    sgd, adam, adamw = (optimizer(name=name, lr=0.1) for name in ("sgd", "adam", "adamw"))
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
        set_rate(built, 0.01 / (step + 1))
        built.step()


def grow(plain: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, build_optimizer(model, optimizer(**plain), {"2.weight": 10.0}, ())


@pytest.mark.parametrize("plain", OPTIMIZERS, ids=lambda plain: plain["name"])
def test_a_fused_step_is_the_plain_one_and_goes_on_exactly(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, built = grow(plain)
    assert built.defaults["fused"] is True
    take_steps(whole, built, range(6))
    first, half = grow(plain)
    take_steps(first, half, range(3))
    second, rest = grow(plain)
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    take_steps(second, rest, range(3, 6))
    monkeypatch.setattr(optim, "choose_fused", lambda *_: False)
    other, unfused = grow(plain)
    take_steps(other, unfused, range(6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.allclose(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-5), name
