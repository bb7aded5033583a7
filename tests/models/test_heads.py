from __future__ import annotations

import pytest
import torch
from torch import nn

from ftcli.models.factory import create_model
from ftcli.models.heads import build_head, replace_head
from ftcli.recipe.schema import Head


def test_build_head_keeps_names_of_single_layer() -> None:
    network = create_model("resnet18", meta=True)
    names = list(network.state_dict())
    replace_head(network, "fc", build_head(network.get_submodule("fc"), Head(), 3))
    assert list(network.state_dict()) == names
    assert network.get_parameter("fc.weight").shape == (3, 512)


@pytest.mark.covers("head.hidden")
def test_build_head_with_hidden_layers_counts_parameters() -> None:
    network = create_model("resnet152", meta=True)
    head = build_head(network.get_submodule("fc"), Head(hidden=(256,), dropout=0.4), 3)
    replace_head(network, "fc", head)
    assert sum(parameter.numel() for parameter in head.parameters()) == 525_315
    assert [type(layer).__name__ for layer in head.children()] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert [name for name in network.state_dict() if name.startswith("fc.")] == [
        "fc.0.weight",
        "fc.0.bias",
        "fc.3.weight",
        "fc.3.bias",
    ]


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", nn.ReLU), ("gelu", nn.GELU), ("silu", nn.SiLU), ("tanh", nn.Tanh)]
)
@pytest.mark.covers("head.activation")
def test_build_head_adds_activation_after_hidden_layers(activation: str, kind: type[nn.Module]) -> None:
    head = build_head(nn.Linear(8, 4), Head.model_validate({"hidden": [6, 5], "activation": activation}), 2)
    assert isinstance(head, nn.Sequential)
    assert [type(layer) for layer in head] == [nn.Linear, kind, nn.Linear, kind, nn.Linear]


@pytest.mark.covers("head.dropout")
def test_build_head_with_dropout_is_sequential() -> None:
    head = build_head(nn.Linear(8, 4), Head(dropout=0.5), 2)
    assert isinstance(head, nn.Sequential)
    assert isinstance(head[0], nn.Dropout)
    assert head[0].p == 0.5


def test_build_head_replaces_convolution_by_convolution() -> None:
    network = create_model("squeezenet1_1", meta=False)
    replace_head(network, "classifier.1", build_head(network.get_submodule("classifier.1"), Head(hidden=(16,)), 3))
    output = network(torch.randn(2, 3, 64, 64))
    assert output.shape == (2, 3)


@pytest.mark.parametrize("init", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"])
@pytest.mark.covers("head.init")
def test_build_head_init_has_expected_variance(init: str) -> None:
    torch.manual_seed(0)
    head = build_head(nn.Linear(2000, 10), Head.model_validate({"init": init}), 1000)
    assert isinstance(head, nn.Linear)
    variance = 2 / 3000 if init.startswith("xavier") else 2 / 2000
    assert float(head.weight.detach().var()) == pytest.approx(variance, rel=0.01)
    bound = (3 * variance) ** 0.5
    assert (float(head.weight.detach().abs().max()) <= bound) == init.endswith("uniform")
    assert torch.equal(head.bias, torch.zeros(1000))


def test_build_head_default_init_is_pytorchs() -> None:
    torch.manual_seed(0)
    expected = nn.Linear(8, 3)
    torch.manual_seed(0)
    head = build_head(nn.Linear(8, 4, device="meta").to_empty(device="cpu"), Head(), 3)
    assert isinstance(head, nn.Linear)
    assert torch.equal(head.weight, expected.weight)
    assert torch.equal(head.bias, expected.bias)


def test_build_head_keeps_device_and_dtype() -> None:
    head = build_head(nn.Linear(8, 4, device="meta", dtype=torch.bfloat16), Head(init="xavier_uniform"), 3)
    assert {(p.device.type, p.dtype) for p in head.parameters()} == {("meta", torch.bfloat16)}


def test_replace_head_rejects_unknown_path() -> None:
    with pytest.raises(AttributeError):
        replace_head(create_model("resnet18", meta=True), "classifier", nn.Identity())


def test_build_head_initializes_hidden_layers() -> None:
    head = build_head(nn.Linear(2000, 10), Head(hidden=(1000,), init="xavier_uniform"), 3)
    assert isinstance(head, nn.Sequential)
    assert float(head.get_parameter("0.weight").detach().var()) == pytest.approx(2 / 3000, rel=0.01)
    assert torch.equal(head.get_parameter("0.bias"), torch.zeros(1000))
