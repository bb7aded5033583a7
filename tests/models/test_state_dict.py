from __future__ import annotations

import pytest
import torch

from ftcli.models.factory import create_model
from ftcli.models.state_dict import copy_state_dict


@pytest.mark.parametrize("name", ["mnasnet0_5", "resnet18"])
def test_copy_state_dict_copies_tensors(name: str) -> None:
    torch.manual_seed(0)
    tensors = {key: value.clone() for key, value in create_model(name, meta=False).state_dict().items()}
    other = create_model(name, meta=False)
    copy_state_dict(other, tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in other.state_dict().items())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_copy_state_dict_leaves_other_tensors_unchanged() -> None:
    network = create_model("resnet18", meta=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    copy_state_dict(network, {"fc.bias": torch.full((1000,), 2.0)})
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.bias"]


def test_copy_state_dict_never_broadcasts() -> None:
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        copy_state_dict(create_model("resnet18", meta=False), {"fc.bias": torch.zeros(1)})
