from __future__ import annotations

import pytest
import torch
from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.factory import create_model
from ftcli.models.heads import build_head, replace_head
from ftcli.models.summary import describe_head, find_head, list_layers, summarize
from ftcli.recipe.schema import Head

HEADS = {
    "resnet18": "fc",
    "vgg11": "classifier.6",
    "alexnet": "classifier.6",
    "squeezenet1_1": "classifier.1",
    "densenet121": "classifier",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "regnet_x_400mf": "fc",
    "googlenet": "fc",
    "convnext_tiny": "classifier.2",
    "maxvit_t": "classifier.5",
    "timm/efficientnet_lite0": "classifier",
    "timm/vit_tiny_patch16_224": "head",
    "timm/convnext_atto": "head.fc",
    "timm/resnetv2_50": "head.fc",
    "timm/mobilenetv3_small_050": "classifier",
}


@pytest.mark.parametrize(("name", "path"), HEADS.items())
def test_find_head_finds_classifier_of_every_family(name: str, path: str) -> None:
    network = create_model(name, meta=True)
    head = find_head(network, summarize(network, 224))
    assert (head.path, head.out_features) == (path, 1000)


def test_describe_head_returns_type_and_width() -> None:
    network = create_model("resnet152", meta=True)
    head = find_head(network, summarize(network, 224))
    assert (head.type, head.in_features, head.out_features) == ("Linear", 2048, 1000)
    replace_head(network, "fc", build_head(network.get_submodule("fc"), Head(hidden=(256,)), 3))
    head = describe_head(network, "fc")
    assert (head.type, head.in_features, head.out_features) == ("Sequential", 2048, 3)


def test_find_head_rejects_two_heads() -> None:
    network = create_model("timm/deit_tiny_distilled_patch16_224", meta=True)
    with pytest.raises(RecipeError) as error:
        find_head(network, summarize(network, 224), "x.yaml:2:3: backbone.name")
    assert str(error.value) == (
        "x.yaml:2:3: backbone.name: the network has 2 heads (head, head_dist) and a recipe replaces only "
        "one; choose another model"
    )


def test_find_head_rejects_network_without_final_linear_layer() -> None:
    network = create_model("timm/volo_d1_224", meta=True)
    with pytest.raises(RecipeError) as error:
        find_head(network, summarize(network, 224), "x.yaml:2:3: backbone.name")
    assert str(error.value) == (
        "x.yaml:2:3: backbone.name: the network does not end with a linear layer of its output shape [1000] "
        "(its last layer is aux_head); choose another model"
    )


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vit_b_16", 64, "Wrong image height! Expected 224 but got 64!"),
        (
            "inception_v3",
            64,
            "Calculated padded input size per channel: (2 x 2). Kernel size: (3 x 3). "
            "Kernel size can't be greater than actual input size",
        ),
    ],
)
def test_summarize_reports_unsupported_image_size(name: str, size: int, reason: str) -> None:
    network = create_model(name, meta=True)
    with pytest.raises(RecipeError) as error:
        summarize(network, size, "x.yaml:4:15: data.image_size")
    assert str(error.value) == (
        f"x.yaml:4:15: data.image_size: the network does not support images of 64 x 64 pixels ({reason}); choose "
        "another size"
    )


def test_summarize_shapes_match_real_forward_pass() -> None:
    network = create_model("resnet18", meta=False)
    summary = summarize(network, 96)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        network(torch.randn(1, 3, 96, 96))
    assert summary.shapes == shapes
    assert summary.output == (1000,)
    assert summary.returns_tensor


def test_summarize_leaves_model_unchanged() -> None:
    network = create_model("resnet18", meta=False).train()
    network.get_submodule("bn1").eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    summarize(network, 64)
    assert [name for name, module in network.named_modules() if not module.training] == ["bn1"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_multiply_adds_match_arithmetic() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(288, 5)
    )
    assert summarize(network, 8).multiply_adds == 8 * 8 * 8 * 3 * 9 + 6 * 6 * 8 * 2 * 9 + 288 * 5


def test_summarize_orders_container_parameters() -> None:
    network = create_model("vit_b_16", meta=True)
    summary = summarize(network, 224)
    order = sorted(summary.first_use, key=lambda name: summary.first_use[name])
    assert order[:4] == ["conv_proj.weight", "conv_proj.bias", "class_token", "encoder.pos_embedding"]
    assert set(order) == {name for name, _ in network.named_parameters()}
    assert summary.first_use["class_token"] > summary.exit_order["conv_proj"]
    assert summary.exit_order["encoder.layers.encoder_layer_0"] < summary.enter_order["encoder.layers.encoder_layer_1"]


def test_summarize_omits_uncalled_module() -> None:
    summary = summarize(create_model("swin_t", meta=True), 224)
    assert "features.1.0.attn.qkv" not in summary.enter_order  # its weights are used, it is not called
    assert "features.1.0.attn.qkv.weight" in summary.first_use


def test_list_layers_counts_trainable_parameters() -> None:
    network = create_model("resnet18", meta=True)
    layers = list_layers(network, summarize(network, 64), 2, {"layer1.0.conv1.weight", "conv1.weight"})
    by_name = {layer.name: layer for layer in layers}
    assert (by_name["conv1"].parameters, by_name["conv1"].trainable) == (9408, 0)
    assert by_name["layer1"].trainable == by_name["layer1"].parameters - 64 * 64 * 9
    assert by_name["layer1.0"].trainable == by_name["layer1.0"].parameters - 64 * 64 * 9
    assert by_name["layer2.1"].depth == 2
    assert "layer1.0.conv1" not in by_name
