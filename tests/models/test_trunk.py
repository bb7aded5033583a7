from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.factory import create_model
from ftcli.models.summary import find_head, summarize
from ftcli.models.trunk import HeadlessModel, common_parent, infer_input_shape

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


class _BranchingOnValues(nn.Module):
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


class _WithSoftmax(_BranchingOnValues):
    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.softmax(1)


class _DoubledInPlace(_BranchingOnValues):
    """What its head gives is written over."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.mul_(2)


class _DoubledInTraining(_BranchingOnValues):
    """In training it does something to what its head gives."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return 2 * output if self.training else output


class _HeadCalledTwice(_BranchingOnValues):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + 0 * super().forward(images)


def _cut(network: nn.Module, path: str, size: int) -> ModelCut | None:
    frozen = {name for name, _ in network.named_parameters() if not name.startswith(f"{path}.")}
    eval_modules = {name for name, _ in network.named_modules() if name != path and not name.startswith(f"{path}.")}
    return cut_model(network, frozen, eval_modules, size)


def test_cut_model_cuts_untraceable_network_at_head() -> None:
    network = _BranchingOnValues().train()
    start = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    cut = _cut(network, "head", 8)
    assert cut is not None
    assert [(crossing.name, crossing.shape) for crossing in cut.boundary] == [("head.input", (4,))]
    assert not cut.is_uncut
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


def test_headless_model_shares_backbone_parameters() -> None:
    network = _BranchingOnValues()
    headless = HeadlessModel(network, "head")
    parameter_ids = {id(parameter) for parameter in network.body.parameters()}
    assert {id(parameter) for parameter in headless.parameters()} == parameter_ids
    assert isinstance(network.head, nn.Sequential)


@pytest.mark.parametrize("network", [_WithSoftmax(), _DoubledInPlace(), _HeadCalledTwice()])
def test_cut_model_returns_none_if_output_is_not_from_head(network: nn.Module) -> None:
    assert _cut(network, "head", 8) is None


def test_cut_model_returns_none_if_train_mode_changes_output() -> None:
    network = _DoubledInTraining()
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("head.")}
    eval_modules = {name for name, _ in network.named_modules() if not name.startswith("head")}
    assert cut_model(network, frozen, eval_modules, 8) is not None
    assert cut_model(network, frozen, eval_modules - {""}, 8) is None
    assert infer_input_shape(network, "head", eval_modules, 8) == (4,)
    assert infer_input_shape(network, "head", eval_modules - {""}, 8) is None


def test_cut_model_returns_none_unless_only_head_trains() -> None:
    network = _BranchingOnValues()
    names = {name for name, _ in network.named_parameters()}
    modules = {name for name, _ in network.named_modules()}
    head = {name for name in names | modules if name.startswith("head")}
    assert cut_model(network, names - head - {"body.0.bias"}, modules - head, 8) is None
    assert cut_model(network, names - head, modules - head - {"body.1"}, 8) is None
    assert cut_model(network, set(), set(), 8) is None
    assert cut_model(network, names, modules, 8) is None


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
def test_common_parent_is_lowest_shared_module(moving: set[str], summit: str) -> None:
    assert common_parent(moving) == summit


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_cut_model_cuts_every_family_at_head_bitwise(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = create_model(name, meta=False, image_size=size).eval()
    head = find_head(network, summarize(network, size)).path
    cut = _cut(network, head, size)
    assert cut is not None
    assert len(cut.boundary) == 1
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        values = cut.prefix(images)
        assert torch.equal(cut.suffix(*values), network(images))
        assert torch.equal(HeadlessModel(network, head)(images)[0], values[0])
