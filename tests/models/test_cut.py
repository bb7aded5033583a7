from __future__ import annotations

import pytest
import torch
from torch import nn

from ftcli.models.anatomy import examine, find_head
from ftcli.models.cut import Cut, find_cut
from ftcli.models.freezing import Freezing, apply_freezing, resolve_freezing, set_modes
from ftcli.models.heads import build_head, replace_head
from ftcli.models.zoo import build_network
from ftcli.recipe.schema import Head, Sgd, Stage

FAMILIES = {
    "resnet18": 64,
    "regnet_x_400mf": 64,
    "mobilenet_v3_small": 64,
    "densenet121": 64,
    "squeezenet1_1": 64,
    "googlenet": 96,
    "swin_t": 64,
    "vit_b_16": 64,
    "timm/efficientnet_lite0": 64,
}


def _build(name: str, size: int) -> tuple[nn.Module, Stage, str]:
    torch.manual_seed(0)
    network = build_network(name, meta=False, image_size=size)
    place = find_head(network, examine(network, size))
    replace_head(network, place.path, build_head(network.get_submodule(place.path), Head(hidden=(8,), dropout=0.5), 3))
    return network, Stage(name="one", freeze="backbone", epochs=1, optimizer=Sgd(name="sgd", lr=0.1)), place.path


def _freeze(network: nn.Module, stage: Stage, head: str, size: int, where: str) -> Freezing:
    anatomy = examine(network, size)
    if where == "half":
        order = sorted(anatomy.first_use, key=lambda name: anatomy.first_use[name])
        stage = stage.model_copy(update={"freeze": tuple(order[: len(order) // 2])})
    return resolve_freezing(network, anatomy, head, stage, "freeze")


def _cut(network: nn.Module, freezing: Freezing, size: int) -> Cut:
    cut = find_cut(network, freezing.parameters, freezing.modules, size)
    assert cut is not None
    return cut


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_the_parts_give_the_bits_of_the_whole(name: str, size: int) -> None:
    network, stage, head = _build(name, size)
    for where in ("head", "half"):
        freezing = _freeze(network, stage, head, size, where)
        cut = _cut(network, freezing, size)
        assert len(cut.crossing) == 1 or where == "half"
        _compare_parts_with_whole(network, cut, freezing, size)


def _compare_parts_with_whole(network: nn.Module, cut: Cut, freezing: Freezing, size: int) -> None:
    images = torch.randn(3, 3, size, size)
    network.eval()
    with torch.no_grad():
        values = cut.prefix(images)
        assert [tuple(value.shape[1:]) for value in values] == [crossing.shape for crossing in cut.crossing]
        assert torch.equal(cut.suffix(*values), network(images))

    apply_freezing(network, freezing)
    set_modes(network, freezing)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(1)
    expected = network(images)
    moved = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(start)
    torch.manual_seed(1)
    with torch.no_grad():
        values = cut.prefix(images)
    assert torch.equal(cut.training_suffix(*values), expected)
    assert all(torch.equal(value, moved[key]) for key, value in network.state_dict().items())


def test_the_prefix_does_not_depend_on_who_else_is_in_the_batch_size_aside() -> None:
    network, stage, head = _build("resnet18", 64)
    cut = _cut(network, _freeze(network, stage, head, 64, "head"), 64)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        (whole,), (turned,) = cut.prefix(images), cut.prefix(images.flip(0))
    assert torch.equal(whole, turned.flip(0))


def test_gradients_reach_what_trains_and_nothing_else() -> None:
    network, stage, head = _build("resnet18", 64)
    freezing = _freeze(network, stage, head, 64, "half")
    cut = _cut(network, freezing, 64)
    apply_freezing(network, freezing)
    set_modes(network, freezing)
    with torch.no_grad():
        values = cut.prefix(torch.randn(2, 3, 64, 64))
    cut.training_suffix(*values).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in network.named_parameters()} - freezing.parameters


def test_a_residual_block_is_cut_at_two_values() -> None:
    network, stage, head = _build("resnet18", 64)
    frozen = ("conv1", "bn1", "layer1", "layer2", "layer3.0.conv1")
    freezing = resolve_freezing(
        network, examine(network, 64), head, stage.model_copy(update={"freeze": frozen}), "freeze"
    )
    cut = _cut(network, freezing, 64)
    assert [crossing.name for crossing in cut.crossing] == ["layer2.1.relu@1", "layer3.0.conv1"]
    assert [crossing.shape for crossing in cut.crossing] == [(128, 8, 8), (256, 4, 4)]


def test_a_norm_layer_in_train_mode_is_live_though_its_parameters_are_frozen() -> None:
    network, _, _ = _build("resnet18", 64)
    body = {name for name, _ in network.named_parameters() if not name.startswith("fc.")}
    modules = {name for name, _ in network.named_modules() if not name.startswith("fc")}
    assert [c.name for c in _cut(network, Freezing(frozenset(body), frozenset(modules)), 64).crossing] == ["flatten"]
    lively = Freezing(frozenset(body), frozenset(modules - {"layer4.1.bn2"}))
    names = [crossing.name for crossing in _cut(network, lively, 64).crossing]
    assert names == ["layer4.0.relu@1", "layer4.1.conv2"]


def test_dropout_in_train_mode_is_live_unless_it_drops_nothing() -> None:
    still = {"", "0", "2"}
    for share, name in ((0.5, "0"), (0.0, "2")):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(share), nn.Flatten(), nn.Linear(4 * 36, 2))
        cut = find_cut(network, {"0.weight", "0.bias"}, still, 8)
        assert cut is not None
        assert [crossing.name for crossing in cut.crossing] == [name]


class _Dropping(nn.Module):
    """A network that drops values by a function, in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images)
        if self.training:
            values = values * torch.rand_like(values)
        output: torch.Tensor = self.head(torch.flatten(values, 1))
        return output


def test_randomness_in_a_networks_own_code_is_live_in_train_mode_alone() -> None:
    network = _Dropping()
    frozen = {"body.weight", "body.bias"}
    for still, name in ((set(), "body"), ({""}, "flatten")):
        cut = find_cut(network, frozen, still, 8)
        assert cut is not None
        assert [crossing.name for crossing in cut.crossing] == [name]
    images = torch.randn(2, 3, 8, 8)
    cut = find_cut(network, frozen, set(), 8)
    assert cut is not None
    assert torch.equal(cut.suffix(*cut.prefix(images)), network.eval()(images))
    torch.manual_seed(0)
    expected = network.train()(images)
    torch.manual_seed(0)
    assert torch.equal(cut.training_suffix(*cut.prefix(images)), expected)


def test_without_frozen_layers_the_image_crosses() -> None:
    network = build_network("googlenet", meta=True)  # its own rescaling of the image is not worth a cut
    cut = find_cut(network, set(), set(), 96)
    assert cut is not None
    assert cut.whole
    assert [crossing.shape for crossing in cut.crossing] == [(3, 96, 96)]


def test_cutting_leaves_a_network_as_it_was() -> None:
    network, stage, head = _build("swin_t", 64)
    network.train().get_submodule("features.1").eval()
    modes = [module.training for module in network.modules()]
    attributes, names = set(vars(network)), list(network.state_dict())
    _cut(network, _freeze(network, stage, head, 64, "half"), 64)
    assert [module.training for module in network.modules()] == modes
    assert (set(vars(network)), list(network.state_dict())) == (attributes, names)


def test_the_parts_share_the_networks_tensors() -> None:
    network, stage, head = _build("resnet18", 64)
    cut = _cut(network, _freeze(network, stage, head, 64, "head"), 64)
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(p) for part in (cut.prefix, cut.suffix) for p in part.parameters()} == own


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.mean((2, 3))
        output: torch.Tensor = self.head(values if values.sum() > 0 else -values)
        return output


def test_a_network_that_branches_on_what_it_computes_has_no_cut() -> None:
    assert find_cut(_Branching(), set(), set(), 8) is None


class _Tracked(nn.Module):
    """A network whose head reads the frozen part and, in training alone, a value of it that evaluation does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images)
        pooled = values.mean((2, 3)) if not self.training else values.amax((2, 3))
        output: torch.Tensor = self.head(pooled)
        return output


def test_values_that_only_one_mode_computes_do_not_cross() -> None:
    network = _Tracked()
    cut = find_cut(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert cut is not None
    assert [crossing.name for crossing in cut.crossing] == ["body"]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network.eval()(images))
    assert torch.equal(cut.training_suffix(*cut.prefix(images)), network.train()(images))


class _Scaled(nn.Module):
    """A network whose code makes a constant as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.body(images).mean((2, 3)) * torch.tensor(0.3))
        return output


def test_a_constant_in_a_networks_code_goes_with_the_parts_and_not_with_the_network() -> None:
    network = _Scaled()
    before = set(vars(network))
    cut = find_cut(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert set(vars(network)) == before
    assert cut is not None
    assert [crossing.shape for crossing in cut.crossing] == [(4,)]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


class _Named(nn.Module):
    """A network that names what it gives to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.act(input=self.body(images)).mean((2, 3)))
        return output


def test_a_layer_may_be_given_its_input_by_name() -> None:
    network = _Named()
    cut = find_cut(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert cut is not None
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


class _Window(nn.Module):
    """A layer whose code branches on a size, and which gives that size beside its values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        values = self.drop(self.inner(images))
        if values.shape[-1] > 4:
            values = values[..., :4]
        return values, [values.shape[-2], values.shape[-1]]


class _Stretch(nn.Module):
    """A layer that takes such a size beside its values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, values: torch.Tensor, size: list[int]) -> torch.Tensor:
        output: torch.Tensor = self.inner(values) * (size[0] if size[0] > size[1] else 1)
        return output


class _Windowed(nn.Module):
    """A network of such layers, whose forward takes more than images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _Window()
        self.last = _Stretch()
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        values, size = self.body(images)
        if mask is not None:
            values = values * mask
        output: torch.Tensor = self.head(self.last(values, size).mean((2, 3)))
        return output


@pytest.mark.parametrize(
    ("frozen", "shape"), [(("body", "last"), (4,)), (("body",), (4, 6, 4)), (("body.inner",), (3, 8, 8))]
)
def test_a_layer_that_branches_on_a_size_stays_whole(frozen: tuple[str, ...], shape: tuple[int, ...]) -> None:
    network = _Windowed()
    parameters = {name for name, _ in network.named_parameters() if name.startswith(frozen)}
    still = {name for name, _ in network.named_modules() if name.startswith(frozen)}
    cut = find_cut(network, parameters, still, 8)
    assert cut is not None
    assert [crossing.shape for crossing in cut.crossing] == [shape]
    assert cut.whole is (shape == (3, 8, 8))
    images = torch.randn(3, 3, 8, 8)
    network.eval()
    with torch.no_grad():
        assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


@pytest.mark.parametrize(
    ("name", "size"), [("timm/hiera_tiny_224", 224), ("timm/mvitv2_tiny", 64), ("timm/tf_efficientnetv2_b0", 64)]
)
def test_the_parts_of_networks_with_such_layers_give_the_bits_of_the_whole(name: str, size: int) -> None:
    network, stage, head = _build(name, size)
    freezing = _freeze(network, stage, head, size, "half")
    _compare_parts_with_whole(network, _cut(network, freezing, size), freezing, size)
