from __future__ import annotations

import pytest
import torch

from ftcli.models.states import put_tensors
from ftcli.models.zoo import build_network


@pytest.mark.parametrize("name", ["mnasnet0_5", "resnet18"])
def test_plain_tensors_are_put_into_a_network(name: str) -> None:
    torch.manual_seed(0)
    tensors = {key: value.clone() for key, value in build_network(name, meta=False).state_dict().items()}
    other = build_network(name, meta=False)
    put_tensors(other, tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in other.state_dict().items())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_tensors_that_are_not_given_stay() -> None:
    network = build_network("resnet18", meta=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    put_tensors(network, {"fc.bias": torch.full((1000,), 2.0)})
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.bias"]


def test_a_tensor_of_another_shape_is_never_spread_out() -> None:
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        put_tensors(build_network("resnet18", meta=False), {"fc.bias": torch.zeros(1)})
