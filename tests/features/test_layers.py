"""Tests of layer names, shapes, axes and depths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.features.layers import AxisLayout, LayerSpec, infer_axis_layout, resolve_layers
from ftcli.models.factory import create_model
from ftcli.models.summary import UnsupportedImageSizeError, find_head, summarize


def _resolve(name: str, size: int, *names: str) -> tuple[LayerSpec, ...]:
    model = create_model(name, True, size)
    return resolve_layers(model, find_head(model, summarize(model, size)).path, names, size)


def _number_names(name: str, count: int) -> list[str]:
    return [f"{name}.{index}" for index in range(count)]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return create_model("resnet18", True, 64)


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [
        ("resnet18", 64, ["maxpool", *(f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1))]),
        (
            "timm/efficientnet_lite0",
            32,
            [
                *(
                    "bn1",
                    "blocks.0",
                    *_number_names("blocks.1", 2),
                    *_number_names("blocks.2", 2),
                    *_number_names("blocks.3", 3),
                ),
                *(*_number_names("blocks.4", 3), *_number_names("blocks.5", 4), "blocks.6", "bn2"),
            ],
        ),
        ("vit_b_16", 32, ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12))]),
        (
            "vgg16",
            32,
            [*(f"features.{n}" for n in (1, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27, 30)), "classifier.2"],
        ),
        (
            "efficientnet_b0",  # some blocks add to their input in place, some have no residual
            32,
            [
                *("features.0", "features.1", *_number_names("features.2", 2), *_number_names("features.3", 2)),
                *(*_number_names("features.4", 3), *_number_names("features.5", 3), *_number_names("features.6", 4)),
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
                *(
                    "stem",
                    *_number_names("stages.0.blocks", 2),
                    "stages.1.downsample",
                    *_number_names("stages.1.blocks", 2),
                ),
                *("stages.2.downsample", *_number_names("stages.2.blocks", 6)),
                *("stages.3.downsample", *_number_names("stages.3.blocks", 2)),
            ],
        ),
    ],
)
def test_resolve_layers_all_gives_blocks_and_head_input(name: str, size: int, blocks: list[str]) -> None:
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


def test_resolve_layers_all_lists_stages_of_deep_networks() -> None:
    def build(blocks: int) -> nn.Sequential:
        stages = [nn.Sequential(*(_Residual() for _ in range(blocks))) for _ in range(3)]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

    twelve, thirteen = (resolve_layers(build(blocks), "5", ("all",), 8) for blocks in (12, 13))
    assert [layer.name for layer in twelve] == [
        *_number_names("0", 12),
        *_number_names("1", 12),
        *_number_names("2", 12),
        "input of 5",
    ]
    assert [layer.name for layer in thirteen] == ["0", "1", "2", "input of 5"]


class _Shared(nn.Module):
    """A network with a layer called twice, and a sequence in which one layer returns two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)
        self.chain = nn.Sequential(_Residual(), _Residual())
        self.non_chain = nn.Sequential(_TupleOutput(), _Residual(), _Residual())
        self.non_chain[1].register_forward_pre_hook(lambda _, inputs: inputs[0][0])
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.non_chain(self.chain(self.relu(self.second(self.relu(self.first(images))))))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def test_resolve_layers_all_does_not_divide_other_sequences() -> None:
    layers = resolve_layers(_Shared(), "fc", ("all",), 8)
    assert [layer.name for layer in layers] == ["first", "second", "chain.0", "chain.1", "non_chain", "input of fc"]


def test_resolve_layers_defaults_to_head_input(resnet: nn.Module) -> None:
    (layer,) = resolve_layers(resnet, "fc", (), 64)
    assert (layer.name, layer.kind, layer.target, layer.output_shape, layer.depth) == (
        "input of fc",
        "input",
        "fc",
        (512,),
        1.0,
    )
    assert resolve_layers(resnet, "fc", ("input of fc",), 64) == (layer,)
    (feature_map,) = resolve_layers(create_model("squeezenet1_1", True), "classifier.1", (), 64)
    assert feature_map.output_shape == (512, 3, 3)


def test_resolve_layers_accepts_modules_nodes_and_patterns(resnet: nn.Module) -> None:
    layers = resolve_layers(resnet, "fc", ("layer2.*", "layer1.0.relu_1", "layer1.0.relu", "fc"), 64)
    assert [(layer.name, layer.kind, layer.output_shape) for layer in layers] == [
        ("layer2.0", "module", (128, 8, 8)),
        ("layer2.1", "module", (128, 8, 8)),
        ("layer1.0.relu_1", "node", (64, 16, 16)),
        ("layer1.0.relu", "module", (64, 16, 16)),
        ("fc", "module", (1000,)),
    ]
    assert layers[2].depth == layers[3].depth  # the module's last output is that of the second ReLU


def test_resolve_layers_depth_is_fraction_of_macs() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 5)
    )
    first, second, last = 8 * 8 * 8 * 27, 8 * 8 * 4 * 8, 256 * 5
    total = first + second + last
    layers = resolve_layers(network, "4", ("0", "1", "2", "3", "4"), 8)
    macs = [first, first, first + second, first + second, total]
    assert [layer.depth for layer in layers] == pytest.approx([done / total for done in macs])


def test_resolve_layers_node_has_depth_of_preceding_module(resnet: nn.Module) -> None:
    names = ("x", "layer1.0.add", "layer1.0.bn2", "layer2.0.add", "layer2.0", "layer2.0.conv1")
    image, add, before_add, second, block, inner = (layer.depth for layer in resolve_layers(resnet, "fc", names, 64))
    assert image == 0
    assert add == before_add
    assert second == block > inner


class _OddOutputs(nn.Module):
    """A network with outputs that cannot be extracted: a tuple, windows, a constant shape."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.windows, self.fixed, self.unused = _TupleOutput(), _Windows(), _Fixed(), nn.Identity()
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pair(images)[0] + self.windows(images).sum() + self.fixed(images).sum()
        logits: Tensor = self.fc(images.mean((2, 3)))
        return logits if float(images.shape[2]) else -logits  # untraceable


class _TupleOutput(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images + 1, images


class _Windows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 16, 3)


class _Fixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(2, 5, device=images.device)


def test_resolve_layers_reports_all_errors_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        resolve_layers(
            _OddOutputs(), "fc", ("fc", "pair", "windows", "fixed", "unused", "pair", "w*", "fcc", "all", "q*"), 8
        )
    known = "known: fc, fixed, pair, windows"
    untraced = "the network has no graph nodes, since its code cannot be traced"
    assert error.value.messages == (
        f"--layer unused: the forward pass calls no module of this name, and {untraced}; {known}",
        f"--layer fcc: the forward pass calls no module of this name, and {untraced}; did you mean 'fc'?",
        "--layer all: cannot be combined with other layers; give it alone",
        f"--layer q*: matches no module that the forward pass calls; {known}",
        "--layer pair: its output is a tuple of 2, not one tensor; choose a layer within it or after it",
        "--layer windows: its output is of shape [8, 16, 3] for 2 images, and its first axis is not the batch; choose "
        "a layer around it or after it",
        "--layer fixed: its output is of shape [2, 5] for 2 images, and its first axis is not the batch; choose a "
        "layer around it or after it",
        "--layer pair: pair is given twice; give it once",
        "--layer w*: windows is given twice; give it once",
    )


def test_resolve_layers_suggests_near_names(resnet: nn.Module) -> None:
    with pytest.raises(RecipeError) as error:
        resolve_layers(resnet, "fc", ("layer4.1.ad", "layr3", "layer4.1.*.conv1"), 64, "--layers")
    assert error.value.messages == (
        "--layers layer4.1.ad: the forward pass has no module or graph node of this name; did you mean "
        "'layer4.1.add' or 'layer4.0.add' or 'layer3.1.add'?",
        "--layers layr3: the forward pass has no module or graph node of this name; did you mean 'layer3' or "
        "'layer3.1' or 'layer3.0'?",
        "--layers layer4.1.*.conv1: matches no module that the forward pass calls; did you mean 'layer4.1.conv1' or "
        "'layer4.1.conv2' or 'layer4.0.conv1'?",
    )


def test_resolve_layers_describes_unusable_values() -> None:
    with pytest.raises(RecipeError) as error:
        _resolve("swin_t", 32, "features.1.1.attn._get_relative_position_bias", "permute", "flatten")
    assert error.value.messages == (
        "--layer features.1.1.attn._get_relative_position_bias: its output is of shape [1, 3, 49, 49] for 2 images, "
        "and its first axis is not the batch; choose a layer around it or after it",
    )
    with pytest.raises(RecipeError) as error:
        _resolve("shufflenet_v2_x0_5", 32, "stage2.1.chunk", "stage2.1.floordiv", "stage2.1.getitem_1")
    assert error.value.messages == (
        "--layer stage2.1.chunk: its output is a tuple of 2, not one tensor; choose a layer within it or after it",
        "--layer stage2.1.floordiv: its output is of type int, not a tensor; choose a layer that gives a tensor",
    )


def test_resolve_layers_raises_for_unsupported_image_size() -> None:
    with pytest.raises(UnsupportedImageSizeError):
        resolve_layers(create_model("vit_b_16", True, 32), "heads.head", (), 48)


class _Traced(nn.Module):
    """A network with a constant, a layer called twice, and a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 1, device="meta") for _ in range(2))
        self.relu, self.fc = nn.ReLU(), nn.Linear(3, 2, device="meta")

    def forward(self, images: Tensor, twice: bool = False) -> Tensor:
        maps = self.relu(self.first(images)) * torch.tensor(2.0)
        maps = self.relu(self.second(self.second(maps) if twice else maps))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def test_resolve_layers_leaves_traced_network_unchanged() -> None:
    network = _Traced().train()
    network.relu.eval()
    attributes = set(vars(network))
    first, node, second = resolve_layers(network, "fc", ("first", "mul", "second"), 8)
    assert (node.kind, node.output_shape) == ("node", (3, 8, 8))
    assert first.depth == node.depth < second.depth  # the ReLU before the node is called again later
    assert [name for name, module in network.named_modules() if not module.training] == ["relu"]
    assert set(vars(network)) == attributes


def test_resolve_layers_leaves_network_unchanged() -> None:
    network = create_model("resnet18", False).train()
    network.get_submodule("bn1").eval()
    attributes = set(vars(network))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    resolve_layers(network, "fc", ("layer1.0.add", "layer2"), 32)
    assert [name for name, module in network.named_modules() if not module.training] == ["bn1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert set(vars(network)) == attributes
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("swin_t", 384, {"features.1.0": ((96, 96, 96), AxisLayout(2)), "features.0.0": ((96, 96, 96), AxisLayout(0))}),
        ("timm/swin_tiny_patch4_window7_224", 384, {"layers.0.blocks.0": ((96, 96, 96), AxisLayout(2))}),
        ("resnet18", 32, {"layer3": ((256, 2, 2), AxisLayout(0)), "fc": ((1000,), AxisLayout(0))}),
        ("alexnet", 64, {"avgpool": ((256, 6, 6), AxisLayout(0))}),
        ("convnext_tiny", 32, {"features.1.0.block.3": ((8, 8, 384), AxisLayout(2))}),
        (
            "vit_b_16",
            64,
            {
                "encoder.layers.encoder_layer_0": ((17, 768), AxisLayout(1, 1)),
                "conv_proj": ((768, 4, 4), AxisLayout(0)),
            },
        ),
        (
            "timm/vit_tiny_patch16_224",
            48,
            {"patch_embed": ((9, 192), AxisLayout(1)), "blocks.0.attn.q_norm": ((3, 10, 64), AxisLayout())},
        ),
        (
            "timm/vit_base_patch16_reg4_gap_256",
            80,
            {"patch_embed": ((25, 768), AxisLayout(1)), "blocks.0": ((29, 768), AxisLayout(1, 4))},
        ),
        (
            "timm/mixer_s32_224",
            64,
            {
                "blocks.0": ((4, 512), AxisLayout(1)),
                "blocks.0.mlp_tokens": ((512, 4), AxisLayout(0)),
                "blocks.0.mlp_tokens.fc1": ((512, 256), AxisLayout()),
            },
        ),
    ],
)
def test_resolve_layers_infers_axis_layout(
    name: str, size: int, layers: dict[str, tuple[tuple[int, ...], AxisLayout]]
) -> None:
    model = create_model(name, True, size)
    resolved = resolve_layers(model, find_head(model, summarize(model, size)).path, tuple(layers), size)
    assert {layer.name: (layer.output_shape, layer.axis_layout) for layer in resolved} == layers


def test_infer_axis_layout_counts_tokens_of_fixed_size_network() -> None:
    network = nn.Module()
    assert infer_axis_layout(network, (196, 384), None) == AxisLayout(1)
    assert infer_axis_layout(network, (384, 196), None) == AxisLayout(0)
    assert infer_axis_layout(network, (196, 256), None) == AxisLayout()  # 14 x 14 and 16 x 16
    assert infer_axis_layout(network, (64, 56, 56), None) == AxisLayout(0)
    assert infer_axis_layout(network, (64, 49, 49), None) == AxisLayout()  # heads, and 7 x 7 tokens
    network.num_patches = 196  # type: ignore[assignment]
    network.cls_token = nn.Parameter(torch.zeros(1, 1, 256))
    assert infer_axis_layout(network, (196, 256), None) == AxisLayout(1)
    assert infer_axis_layout(network, (197, 256), None) == AxisLayout(1, 1)
    assert infer_axis_layout(network, (1, 256), None) == AxisLayout(1)
    assert infer_axis_layout(network, (64, 197, 197), None) == AxisLayout()
    assert infer_axis_layout(network, (64, 49, 49), None) == AxisLayout(0)


def test_infer_axis_layout_finds_axes_that_grow() -> None:
    network = nn.Module()
    assert infer_axis_layout(network, (4, 4, 4), (4, 8, 8)) == AxisLayout(0)
    assert infer_axis_layout(network, (4, 4, 4), (8, 8, 4)) == AxisLayout(2)
    assert (
        infer_axis_layout(network, (4, 4, 4), (4, 4, 4))
        == infer_axis_layout(network, (4, 4, 4), (8, 8, 8))
        == AxisLayout()
    )
    assert infer_axis_layout(network, (3, 64, 64), (3, 256, 64)) == AxisLayout()  # heads, tokens, dimensions
    assert infer_axis_layout(network, (64, 64, 96), (256, 64, 96)) == AxisLayout()  # windows, tokens, dimensions
    assert infer_axis_layout(network, (9, 9), (36, 9)) == AxisLayout(1)
    assert infer_axis_layout(network, (9, 9), (9, 36)) == AxisLayout(0)
    assert infer_axis_layout(network, (9, 9), (36, 36)) == infer_axis_layout(network, (9, 9), (9, 9)) == AxisLayout()
    assert infer_axis_layout(network, (2, 3, 4, 4), (2, 3, 8, 8)) == AxisLayout()
