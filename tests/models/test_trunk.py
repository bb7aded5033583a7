from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ftcli.models.anatomy import examine, find_head
from ftcli.models.cut import Cut, find_cut
from ftcli.models.trunk import Trunk, find_summit, measure_input
from ftcli.models.zoo import build_network

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "inception_v3": 96,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "regnet_y_400mf": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "swin_v2_t": 32,
    "vgg11_bn": 32,
}
"""Those families of torchvision that the tests of the cut leave out; MaxViT alone takes larger images only."""


class _Branching(nn.Module):
    """A network that cannot be traced: its code branches on a value that it computes."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = head or nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images).mean((2, 3))
        return self.finish(self.head(values if values.sum() > 0 else -values))

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output


class _Softened(_Branching):
    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.softmax(1)


class _Doubled(_Branching):
    """What its head gives is written over."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.mul_(2)


class _Moody(_Branching):
    """In training it does something to what its head gives."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return 2 * output if self.training else output


class _Twice(_Branching):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + 0 * super().forward(images)


def _cut(network: nn.Module, path: str, size: int) -> Cut | None:
    frozen = {name for name, _ in network.named_parameters() if not name.startswith(f"{path}.")}
    still = {name for name, _ in network.named_modules() if name != path and not name.startswith(f"{path}.")}
    return find_cut(network, frozen, still, size)


def test_a_network_that_cannot_be_traced_is_cut_at_its_head() -> None:
    network = _Branching().train()
    start = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    cut = _cut(network, "head", 8)
    assert cut is not None
    assert [(crossing.name, crossing.shape) for crossing in cut.crossing] == [("head.input", (4,))]
    assert not cut.whole
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.head._forward_hooks

    images = torch.randn(3, 3, 8, 8)
    network.eval()
    with torch.no_grad():
        assert torch.equal(cut.suffix(*cut.prefix.eval()(images)), network(images))
    network.head.train()
    with torch.no_grad():
        values = cut.prefix(images)
    torch.manual_seed(1)
    expected = network(images)
    torch.manual_seed(1)
    assert torch.equal(cut.training_suffix(*values), expected)


def test_a_trunk_has_the_networks_own_tensors_without_the_heads() -> None:
    network = _Branching()
    trunk = Trunk(network, "head")
    own = {id(parameter) for parameter in network.body.parameters()}
    assert {id(parameter) for parameter in trunk.parameters()} == own
    assert isinstance(network.head, nn.Sequential)


@pytest.mark.parametrize("network", [_Softened(), _Doubled(), _Twice()])
def test_no_cut_where_the_output_is_not_the_heads(network: nn.Module) -> None:
    assert _cut(network, "head", 8) is None


def test_no_cut_where_it_is_not_in_the_mode_that_the_network_trains_in() -> None:
    network = _Moody()
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("head.")}
    still = {name for name, _ in network.named_modules() if not name.startswith("head")}
    assert find_cut(network, frozen, still, 8) is not None
    assert find_cut(network, frozen, still - {""}, 8) is None
    assert measure_input(network, "head", still, 8) == (4,)
    assert measure_input(network, "head", still - {""}, 8) is None


def test_no_cut_before_a_head_where_something_else_trains_or_nothing_is_frozen_or_nothing_moves() -> None:
    network = _Branching()
    names = {name for name, _ in network.named_parameters()}
    modules = {name for name, _ in network.named_modules()}
    head = {name for name in names | modules if name.startswith("head")}
    assert find_cut(network, names - head - {"body.0.bias"}, modules - head, 8) is None
    assert find_cut(network, names - head, modules - head - {"body.1"}, 8) is None
    assert find_cut(network, set(), set(), 8) is None
    assert find_cut(network, names, modules, 8) is None


@pytest.mark.parametrize(
    ("moving", "summit"),
    [
        ({"fc"}, "fc"),
        ({"fc.0", "fc.3"}, "fc"),
        ({"head.fc", "head.fc.0"}, "head.fc"),
        ({"head.fc", "headless.fc"}, ""),
        ({"", "fc"}, ""),
    ],
)
def test_the_summit_is_the_lowest_module_above_all(moving: set[str], summit: str) -> None:
    assert find_summit(moving) == summit


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_every_family_is_cut_at_its_head_with_the_bits_of_the_whole(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, meta=False, image_size=size).eval()
    head = find_head(network, examine(network, size)).path
    cut = _cut(network, head, size)
    assert cut is not None
    assert len(cut.crossing) == 1
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        values = cut.prefix(images)
        assert torch.equal(cut.suffix(*values), network(images))
        assert torch.equal(Trunk(network, head)(images)[0], values[0])
