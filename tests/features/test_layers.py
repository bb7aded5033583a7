"""A layer is what its name says, or it is refused in a sentence that tells what it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.features.layers import Layer, resolve_layers
from ftcli.models.anatomy import SizeRefused, examine, find_head
from ftcli.models.zoo import build_network


def _resolve(name: str, size: int, *names: str) -> tuple[Layer, ...]:
    model = build_network(name, True, size)
    return resolve_layers(model, find_head(model, examine(model, size)).path, names, size)


def _count(name: str, number: int) -> list[str]:
    return [f"{name}.{place}" for place in range(number)]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return build_network("resnet18", True, 64)


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [
        ("resnet18", 64, ["maxpool", *(f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1))]),
        (
            "timm/efficientnet_lite0",
            32,
            [
                *("bn1", "blocks.0", *_count("blocks.1", 2), *_count("blocks.2", 2), *_count("blocks.3", 3)),
                *(*_count("blocks.4", 3), *_count("blocks.5", 4), "blocks.6", "bn2"),
            ],
        ),
        ("vit_b_16", 32, ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12))]),
        (
            "vgg16",
            32,
            [*(f"features.{n}" for n in (1, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27, 30)), "classifier.2"],
        ),
        (
            "efficientnet_b0",  # whose blocks add to their own input in place, and some of them not at all
            32,
            [
                *("features.0", "features.1", *_count("features.2", 2), *_count("features.3", 2)),
                *(*_count("features.4", 3), *_count("features.5", 3), *_count("features.6", 4)),
                *("features.7", "features.8"),
            ],
        ),
        (
            "densenet121",
            32,
            [
                *("features.pool0", "features.denseblock1", "features.transition1", "features.denseblock2"),
                *("features.transition2", "features.denseblock3", "features.transition3", "features.norm5"),
            ],
        ),
        (
            "googlenet",
            64,
            [
                *("maxpool1", "conv2", "maxpool2", "inception3a", "maxpool3", "inception4a", "inception4b"),
                *("inception4c", "inception4d", "maxpool4", "inception5a", "inception5b"),
            ],
        ),
        (
            "timm/convnext_atto",
            32,
            [
                *("stem", *_count("stages.0.blocks", 2), "stages.1.downsample", *_count("stages.1.blocks", 2)),
                *("stages.2.downsample", *_count("stages.2.blocks", 6)),
                *("stages.3.downsample", *_count("stages.3.blocks", 2)),
            ],
        ),
    ],
)
def test_all_is_the_chain_of_blocks_and_the_input_of_the_head(name: str, size: int, blocks: list[str]) -> None:
    layers = _resolve(name, size, "all")
    assert [layer.name for layer in layers[:-1]] == blocks
    assert layers[-1].name.startswith("input of ")
    assert (layers[-1].kind, layers[-1].depth) == ("input", 1.0)
    assert layers[0].depth > 0
    assert all(first.depth < second.depth for first, second in pairwise(layers))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, maps: Tensor) -> Tensor:
        sum_: Tensor = maps + self.conv(maps)
        return sum_


def test_of_very_many_blocks_the_stages_are_taken() -> None:
    def build(blocks: int) -> nn.Sequential:
        stages = [nn.Sequential(*(_Residual() for _ in range(blocks))) for _ in range(3)]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

    few, many = (resolve_layers(build(blocks), "5", ("all",), 8) for blocks in (12, 13))
    assert [layer.name for layer in few] == [*_count("0", 12), *_count("1", 12), *_count("2", 12), "input of 5"]
    assert [layer.name for layer in many] == ["0", "1", "2", "input of 5"]


class _Shared(nn.Module):
    """Uses a layer twice, and has a row of which one layer gives two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)
        self.whole = nn.Sequential(_Residual(), _Residual())
        self.torn = nn.Sequential(_Pair(), _Residual(), _Residual())
        self.torn[1].register_forward_pre_hook(lambda _module, given: given[0][0])
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.torn(self.whole(self.relu(self.second(self.relu(self.first(images))))))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def test_a_layer_used_twice_ends_no_unit_and_a_torn_row_stays_whole() -> None:
    layers = resolve_layers(_Shared(), "fc", ("all",), 8)
    assert [layer.name for layer in layers] == ["first", "second", "whole.0", "whole.1", "torn", "input of fc"]


def test_without_names_it_is_what_the_head_reads(resnet: nn.Module) -> None:
    (layer,) = resolve_layers(resnet, "fc", (), 64)
    assert (layer.name, layer.kind, layer.target, layer.output_shape, layer.depth) == (
        "input of fc",
        "input",
        "fc",
        (512,),
        1.0,
    )
    assert resolve_layers(resnet, "fc", ("input of fc",), 64) == (layer,)
    (map_,) = resolve_layers(build_network("squeezenet1_1", True), "classifier.1", (), 64)
    assert map_.output_shape == (512, 3, 3)


def test_names_are_those_of_modules_nodes_and_patterns(resnet: nn.Module) -> None:
    layers = resolve_layers(resnet, "fc", ("layer2.*", "layer1.0.relu_1", "layer1.0.relu", "fc"), 64)
    assert [(layer.name, layer.kind, layer.output_shape) for layer in layers] == [
        ("layer2.0", "module", (128, 8, 8)),
        ("layer2.1", "module", (128, 8, 8)),
        ("layer1.0.relu_1", "node", (64, 16, 16)),
        ("layer1.0.relu", "module", (64, 16, 16)),
        ("fc", "module", (1000,)),
    ]
    assert layers[2].depth == layers[3].depth  # the module's last output is that of the second ReLU


def test_depth_is_the_share_of_the_multiply_adds() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 5)
    )
    first, second, last = 8 * 8 * 8 * 27, 8 * 8 * 4 * 8, 256 * 5
    total = first + second + last
    layers = resolve_layers(network, "4", ("0", "1", "2", "3", "4"), 8)
    shares = [first, first, first + second, first + second, total]
    assert [layer.depth for layer in layers] == pytest.approx([share / total for share in shares])


def test_a_node_is_as_deep_as_the_last_module_before_it(resnet: nn.Module) -> None:
    names = ("x", "layer1.0.add", "layer1.0.bn2", "layer2.0.add", "layer2.0", "layer2.0.conv1")
    image, add, before, second, block, inner = (layer.depth for layer in resolve_layers(resnet, "fc", names, 64))
    assert image == 0
    assert add == before
    assert second == block > inner


class _Odd(nn.Module):
    """Has modules that give what is no layer's output: a pair, windows, the same for any number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.windows, self.fixed, self.unused = _Pair(), _Windows(), _Fixed(), nn.Identity()
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pair(images)[0] + self.windows(images).sum() + self.fixed(images).sum()
        logits: Tensor = self.fc(images.mean((2, 3)))
        return logits if float(images.shape[2]) else -logits  # which no tracer can tell


class _Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images + 1, images


class _Windows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 16, 3)


class _Fixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(2, 5, device=images.device)


def test_what_is_no_layer_is_told_all_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        resolve_layers(_Odd(), "fc", ("fc", "pair", "windows", "fixed", "unused", "pair", "w*", "fcc", "all", "q*"), 8)
    known = "known: fc, fixed, pair, windows"
    untraced = "the network has no graph nodes, since its code cannot be traced"
    assert error.value.faults == (
        f"--layer unused: no image passes through a module of this name, and {untraced}; {known}",
        f"--layer fcc: no image passes through a module of this name, and {untraced}; did you mean 'fc'?",
        "--layer all: stands for a chain of layers and takes no others beside it; give it alone",
        f"--layer q*: no image passes through a module that this matches; {known}",
        "--layer pair: its output is a tuple of 2, not one tensor; choose a layer within it or after it",
        "--layer windows: its output is of shape [8, 16, 3] for 2 images, which does not begin with the number of "
        "images; choose a layer around it or after it",
        "--layer fixed: its output is of shape [2, 5] for 2 images, which does not begin with the number of images; "
        "choose a layer around it or after it",
        "--layer pair: pair is named twice; name it once",
        "--layer w*: windows is named twice; name it once",
    )


def test_near_names_are_those_of_modules_and_nodes(resnet: nn.Module) -> None:
    with pytest.raises(RecipeError) as error:
        resolve_layers(resnet, "fc", ("layer4.1.ad", "layr3", "layer4.1.*.conv1"), 64, "--layers")
    assert error.value.faults == (
        "--layers layer4.1.ad: no image passes through a module or graph node of this name; did you mean "
        "'layer4.1.add' or 'layer4.0.add' or 'layer3.1.add'?",
        "--layers layr3: no image passes through a module or graph node of this name; did you mean 'layer3' or "
        "'layer3.1' or 'layer3.0'?",
        "--layers layer4.1.*.conv1: no image passes through a module that this matches; did you mean 'layer4.1.conv1' "
        "or 'layer4.1.conv2' or 'layer4.0.conv1'?",
    )


def test_a_value_within_that_is_no_layer_is_told_by_what_it_is() -> None:
    with pytest.raises(RecipeError) as error:
        _resolve("swin_t", 32, "features.1.1.attn._get_relative_position_bias", "permute", "flatten")
    assert error.value.faults == (
        "--layer features.1.1.attn._get_relative_position_bias: its output is of shape [1, 3, 49, 49] for 2 images, "
        "which does not begin with the number of images; choose a layer around it or after it",
    )
    with pytest.raises(RecipeError) as error:
        _resolve("shufflenet_v2_x0_5", 32, "stage2.1.chunk", "stage2.1.floordiv", "stage2.1.getitem_1")
    assert error.value.faults == (
        "--layer stage2.1.chunk: its output is a tuple of 2, not one tensor; choose a layer within it or after it",
        "--layer stage2.1.floordiv: its output is no tensor but of type int; choose a layer that gives a tensor",
    )


def test_a_size_that_the_network_refuses_is_told() -> None:
    with pytest.raises(SizeRefused):
        resolve_layers(build_network("vit_b_16", True, 32), "heads.head", (), 48)


class _Traced(nn.Module):
    """Computes with a number of its own, uses a layer twice, and takes a switch beside the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 1, device="meta") for _ in range(2))
        self.relu, self.fc = nn.ReLU(), nn.Linear(3, 2, device="meta")

    def forward(self, images: Tensor, twice: bool = False) -> Tensor:
        maps = self.relu(self.first(images)) * torch.tensor(2.0)
        maps = self.relu(self.second(self.second(maps) if twice else maps))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def test_tracing_leaves_a_network_as_it_was() -> None:
    network = _Traced().train()
    network.relu.eval()
    held = set(vars(network))
    first, node, second = resolve_layers(network, "fc", ("first", "mul", "second"), 8)
    assert (node.kind, node.output_shape) == ("node", (3, 8, 8))
    assert first.depth == node.depth < second.depth  # the ReLU before the node works again later
    assert [name for name, module in network.named_modules() if not module.training] == ["relu"]
    assert set(vars(network)) == held


def test_resolving_leaves_a_network_as_it_was() -> None:
    network = build_network("resnet18", False).train()
    network.get_submodule("bn1").eval()
    held = set(vars(network))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    resolve_layers(network, "fc", ("layer1.0.add", "layer2"), 32)
    assert [name for name, module in network.named_modules() if not module.training] == ["bn1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert set(vars(network)) == held
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
