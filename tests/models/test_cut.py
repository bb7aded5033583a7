from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ftcli.models.cut import HeadlessModel, ModelCut, cut_model, find_common_parent, infer_input_shape
from ftcli.models.factory import create_model
from ftcli.models.freezing import FrozenNames, resolve_freeze, set_requires_grad, set_train_mode
from ftcli.models.heads import build_head, replace_head
from ftcli.models.summary import find_head, summarize
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

HEAD_FAMILIES = {
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
"""The families of torchvision that FAMILIES omits, except MaxViT, which needs larger images."""


def _build(name: str, size: int) -> tuple[nn.Module, Stage, str]:
    torch.manual_seed(0)
    network = create_model(name, meta=False, image_size=size)
    head = find_head(network, summarize(network, size))
    replace_head(network, head.path, build_head(network.get_submodule(head.path), Head(hidden=(8,), dropout=0.5), 3))
    return network, Stage(name="one", freeze="backbone", epochs=1, optimizer=Sgd(name="sgd", lr=0.1)), head.path


def _freeze(network: nn.Module, stage: Stage, head: str, size: int, depth: str) -> FrozenNames:
    summary = summarize(network, size)
    if depth == "half":
        order = sorted(summary.first_use, key=lambda name: summary.first_use[name])
        stage = stage.model_copy(update={"freeze": tuple(order[: len(order) // 2])})
    return resolve_freeze(network, summary, head, stage, "freeze", errors=[])


def _cut(network: nn.Module, frozen_names: FrozenNames, size: int) -> ModelCut:
    cut = cut_model(network, frozen_names.parameters, frozen_names.modules, size)
    assert cut is not None
    return cut


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_cut_model_parts_equal_network_bitwise(name: str, size: int) -> None:
    network, stage, head = _build(name, size)
    for depth in ("head", "half"):
        frozen_names = _freeze(network, stage, head, size, depth)
        cut = _cut(network, frozen_names, size)
        assert len(cut.boundary) == 1 or depth == "half"
        _assert_parts_match_network(network, cut, frozen_names, size)


def _assert_parts_match_network(network: nn.Module, cut: ModelCut, frozen_names: FrozenNames, size: int) -> None:
    images = torch.randn(3, 3, size, size)
    network.eval()
    with torch.no_grad():
        values = cut.prefix(images)
        assert [tuple(value.shape[1:]) for value in values] == [tensor.shape for tensor in cut.boundary]
        assert torch.equal(cut.suffix(*values), network(images))

    set_requires_grad(network, frozen_names)
    set_train_mode(network, frozen_names)
    initial_state = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(1)
    expected = network(images)
    trained_state = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(initial_state)
    torch.manual_seed(1)
    with torch.no_grad():
        values = cut.prefix(images)
    assert torch.equal(cut.training_suffix(*values), expected)
    assert all(torch.equal(value, trained_state[key]) for key, value in network.state_dict().items())


def test_prefix_does_not_depend_on_batch_order() -> None:
    network, stage, head = _build("resnet18", 64)
    cut = _cut(network, _freeze(network, stage, head, 64, "head"), 64)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        (values,), (flipped_values,) = cut.prefix(images), cut.prefix(images.flip(0))
    assert torch.equal(values, flipped_values.flip(0))


def test_suffix_gradients_reach_only_trainable_parameters() -> None:
    network, stage, head = _build("resnet18", 64)
    frozen_names = _freeze(network, stage, head, 64, "half")
    cut = _cut(network, frozen_names, 64)
    set_requires_grad(network, frozen_names)
    set_train_mode(network, frozen_names)
    with torch.no_grad():
        values = cut.prefix(torch.randn(2, 3, 64, 64))
    cut.training_suffix(*values).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in network.named_parameters()} - frozen_names.parameters


def test_cut_model_cuts_residual_block_at_two_tensors() -> None:
    network, stage, head = _build("resnet18", 64)
    frozen = ("conv1", "bn1", "layer1", "layer2", "layer3.0.conv1")
    stage = stage.model_copy(update={"freeze": frozen})
    frozen_names = resolve_freeze(network, summarize(network, 64), head, stage, "freeze", errors=[])
    cut = _cut(network, frozen_names, 64)
    assert [tensor.name for tensor in cut.boundary] == ["layer2.1.relu@1", "layer3.0.conv1"]
    assert [tensor.shape for tensor in cut.boundary] == [(128, 8, 8), (256, 4, 4)]


def test_cut_model_keeps_train_mode_norm_in_suffix() -> None:
    network, _, _ = _build("resnet18", 64)
    backbone_parameters = {name for name, _ in network.named_parameters() if not name.startswith("fc.")}
    modules = {name for name, _ in network.named_modules() if not name.startswith("fc")}
    assert [
        c.name for c in _cut(network, FrozenNames(frozenset(backbone_parameters), frozenset(modules)), 64).boundary
    ] == ["flatten"]
    with_train_mode_norm = FrozenNames(frozenset(backbone_parameters), frozenset(modules - {"layer4.1.bn2"}))
    names = [tensor.name for tensor in _cut(network, with_train_mode_norm, 64).boundary]
    assert names == ["layer4.0.relu@1", "layer4.1.conv2"]


def test_cut_model_keeps_active_dropout_in_suffix() -> None:
    eval_modules = {"", "0", "2"}
    for probability, name in ((0.5, "0"), (0.0, "2")):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(probability), nn.Flatten(), nn.Linear(4 * 36, 2))
        cut = cut_model(network, {"0.weight", "0.bias"}, eval_modules, 8)
        assert cut is not None
        assert [tensor.name for tensor in cut.boundary] == [name]


class _FunctionalDropout(nn.Module):
    """A network with dropout in the code of its forward."""

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


def test_cut_model_keeps_functional_randomness_in_suffix_in_train_mode() -> None:
    network = _FunctionalDropout()
    frozen = {"body.weight", "body.bias"}
    for eval_modules, name in ((set(), "body"), ({""}, "flatten")):
        cut = cut_model(network, frozen, eval_modules, 8)
        assert cut is not None
        assert [tensor.name for tensor in cut.boundary] == [name]
    images = torch.randn(2, 3, 8, 8)
    cut = cut_model(network, frozen, set(), 8)
    assert cut is not None
    assert torch.equal(cut.suffix(*cut.prefix(images)), network.eval()(images))
    torch.manual_seed(0)
    expected = network.train()(images)
    torch.manual_seed(0)
    assert torch.equal(cut.training_suffix(*cut.prefix(images)), expected)


def test_cut_model_without_frozen_layers_is_uncut() -> None:
    network = create_model("googlenet", meta=True)  # its rescaling of the image does not count as frozen
    cut = cut_model(network, set(), set(), 96)
    assert cut is not None
    assert cut.is_uncut
    assert [tensor.shape for tensor in cut.boundary] == [(3, 96, 96)]


def test_cut_model_leaves_model_unchanged() -> None:
    network, stage, head = _build("swin_t", 64)
    network.train().get_submodule("features.1").eval()
    modes = [module.training for module in network.modules()]
    attributes, names = set(vars(network)), list(network.state_dict())
    _cut(network, _freeze(network, stage, head, 64, "half"), 64)
    assert [module.training for module in network.modules()] == modes
    assert (set(vars(network)), list(network.state_dict())) == (attributes, names)


def test_cut_model_parts_share_parameters() -> None:
    network, stage, head = _build("resnet18", 64)
    cut = _cut(network, _freeze(network, stage, head, 64, "head"), 64)
    parameter_ids = {id(parameter) for parameter in network.parameters()}
    assert {id(p) for part in (cut.prefix, cut.suffix) for p in part.parameters()} == parameter_ids


class _BranchingOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.mean((2, 3))
        output: torch.Tensor = self.head(values if values.sum() > 0 else -values)
        return output


def test_cut_model_returns_none_for_data_dependent_control_flow() -> None:
    assert cut_model(_BranchingOnValues(), set(), set(), 8) is None


class _TrainOnlyPooling(nn.Module):
    """A network whose head reads other frozen values in train mode than in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images)
        pooled = values.mean((2, 3)) if not self.training else values.amax((2, 3))
        output: torch.Tensor = self.head(pooled)
        return output


def test_cut_model_boundary_has_no_values_of_only_one_mode() -> None:
    network = _TrainOnlyPooling()
    cut = cut_model(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert cut is not None
    assert [tensor.name for tensor in cut.boundary] == ["body"]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network.eval()(images))
    assert torch.equal(cut.training_suffix(*cut.prefix(images)), network.train()(images))


class _WithConstant(nn.Module):
    """A network whose forward creates a constant tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.body(images).mean((2, 3)) * torch.tensor(0.3))
        return output


def test_cut_model_stores_constants_in_parts() -> None:
    network = _WithConstant()
    before = set(vars(network))
    cut = cut_model(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert set(vars(network)) == before
    assert cut is not None
    assert [tensor.shape for tensor in cut.boundary] == [(4,)]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


class _KeywordInput(nn.Module):
    """A network that calls a layer with a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.act(input=self.body(images)).mean((2, 3)))
        return output


def test_cut_model_handles_keyword_inputs() -> None:
    network = _KeywordInput()
    cut = cut_model(network, {"body.weight", "body.bias"}, {"body"}, 8)
    assert cut is not None
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


class _BranchingOnSize(nn.Module):
    """A layer whose code branches on a size, and which returns that size with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        values = self.drop(self.inner(images))
        if values.shape[-1] > 4:
            values = values[..., :4]
        return values, [values.shape[-2], values.shape[-1]]


class _TakingSize(nn.Module):
    """A layer with a size as second input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, values: torch.Tensor, size: list[int]) -> torch.Tensor:
        output: torch.Tensor = self.inner(values) * (size[0] if size[0] > size[1] else 1)
        return output


class _NetworkBranchingOnSize(nn.Module):
    """A network of these layers, whose forward has an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _BranchingOnSize()
        self.last = _TakingSize()
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
def test_cut_model_does_not_trace_into_layer_branching_on_size(frozen: tuple[str, ...], shape: tuple[int, ...]) -> None:
    network = _NetworkBranchingOnSize()
    parameters = {name for name, _ in network.named_parameters() if name.startswith(frozen)}
    eval_modules = {name for name, _ in network.named_modules() if name.startswith(frozen)}
    cut = cut_model(network, parameters, eval_modules, 8)
    assert cut is not None
    assert [tensor.shape for tensor in cut.boundary] == [shape]
    assert cut.is_uncut is (shape == (3, 8, 8))
    images = torch.randn(3, 3, 8, 8)
    network.eval()
    with torch.no_grad():
        assert torch.equal(cut.suffix(*cut.prefix(images)), network(images))


@pytest.mark.parametrize(
    ("name", "size"), [("timm/hiera_tiny_224", 224), ("timm/mvitv2_tiny", 64), ("timm/tf_efficientnetv2_b0", 64)]
)
def test_cut_model_parts_of_untraceable_layers_equal_network_bitwise(name: str, size: int) -> None:
    network, stage, head = _build(name, size)
    frozen_names = _freeze(network, stage, head, size, "half")
    _assert_parts_match_network(network, _cut(network, frozen_names, size), frozen_names, size)


class _Untraceable(nn.Module):
    """A network that cannot be traced, since its code branches on a computed value."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = head or nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images).mean((2, 3))
        return self.finish(self.head(values if values.sum() > 0 else -values))

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output


class _WithSoftmax(_Untraceable):
    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.softmax(1)


class _DoubledInPlace(_Untraceable):
    """A network that modifies its head's output in place."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return output.mul_(2)


class _DoubledInTraining(_Untraceable):
    """A network that changes its head's output in train mode."""

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        return 2 * output if self.training else output


class _HeadCalledTwice(_Untraceable):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + 0 * super().forward(images)


def _cut_before(network: nn.Module, path: str, size: int) -> ModelCut | None:
    frozen = {name for name, _ in network.named_parameters() if not name.startswith(f"{path}.")}
    eval_modules = {name for name, _ in network.named_modules() if name != path and not name.startswith(f"{path}.")}
    return cut_model(network, frozen, eval_modules, size)


def test_cut_model_cuts_untraceable_network_at_head() -> None:
    network = _Untraceable().train()
    start = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    cut = _cut_before(network, "head", 8)
    assert cut is not None
    assert [(tensor.name, tensor.shape) for tensor in cut.boundary] == [("head.input", (4,))]
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
    network = _Untraceable()
    headless = HeadlessModel(network, "head")
    parameter_ids = {id(parameter) for parameter in network.body.parameters()}
    assert {id(parameter) for parameter in headless.parameters()} == parameter_ids
    assert isinstance(network.head, nn.Sequential)


@pytest.mark.parametrize("network", [_WithSoftmax(), _DoubledInPlace(), _HeadCalledTwice()])
def test_cut_model_returns_none_if_output_is_not_from_head(network: nn.Module) -> None:
    assert _cut_before(network, "head", 8) is None


def test_cut_model_returns_none_if_train_mode_changes_output() -> None:
    network = _DoubledInTraining()
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("head.")}
    eval_modules = {name for name, _ in network.named_modules() if not name.startswith("head")}
    assert cut_model(network, frozen, eval_modules, 8) is not None
    assert cut_model(network, frozen, eval_modules - {""}, 8) is None
    assert infer_input_shape(network, "head", eval_modules, 8) == (4,)
    assert infer_input_shape(network, "head", eval_modules - {""}, 8) is None


def test_cut_model_returns_none_unless_only_head_trains() -> None:
    network = _Untraceable()
    names = {name for name, _ in network.named_parameters()}
    modules = {name for name, _ in network.named_modules()}
    head = {name for name in names | modules if name.startswith("head")}
    assert cut_model(network, names - head - {"body.0.bias"}, modules - head, 8) is None
    assert cut_model(network, names - head, modules - head - {"body.1"}, 8) is None
    assert cut_model(network, set(), set(), 8) is None
    assert cut_model(network, names, modules, 8) is None


@pytest.mark.parametrize(
    ("names", "parent"),
    [
        ({"fc"}, "fc"),
        ({"fc.0", "fc.3"}, "fc"),
        ({"head.fc", "head.fc.0"}, "head.fc"),
        ({"head.fc", "headless.fc"}, ""),
        ({"", "fc"}, ""),
    ],
)
def test_find_common_parent_is_lowest_shared_module(names: set[str], parent: str) -> None:
    assert find_common_parent(names) == parent


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), HEAD_FAMILIES.items())
def test_cut_model_cuts_every_family_at_head_bitwise(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = create_model(name, meta=False, image_size=size).eval()
    head = find_head(network, summarize(network, size)).path
    cut = _cut_before(network, head, size)
    assert cut is not None
    assert len(cut.boundary) == 1
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        values = cut.prefix(images)
        assert torch.equal(cut.suffix(*values), network(images))
        assert torch.equal(HeadlessModel(network, head)(images)[0], values[0])
