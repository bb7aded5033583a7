"""Tests of the activations that are plotted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ftcli.errors import RecipeError
from ftcli.evaluation.classifier import LoadedModel
from ftcli.inspection.activations import (
    check_layers,
    choose_layers,
    compute_activations,
    infer_grid_size,
    to_channels_first,
)
from ftcli.models.factory import create_model
from ftcli.models.summary import find_head, summarize
from ftcli.results import Preprocessing


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((64, 56, 56), (56, 56)),
        ((7, 7, 768), (7, 7)),
        ((8, 8, 8), (8, 8)),
        ((197, 768), (14, 14)),
        ((196, 768), (14, 14)),
        ((201, 768), (14, 14)),
        ((512, 1, 1), None),
        ((1, 1, 768), None),
        ((768,), None),
        ((2, 768), None),
        ((64, 49, 32), None),
        (None, None),
    ],
)
def test_infer_grid_size_accepts_maps_and_tokens(shape: tuple[int, ...] | None, grid: tuple[int, int] | None) -> None:
    assert infer_grid_size(shape, 5) == grid


def test_to_channels_first_handles_tokens_and_channels_last() -> None:
    maps = torch.arange(2 * 3 * 3.0).reshape(2, 3, 3)
    assert torch.equal(to_channels_first(maps[None], 1), maps)
    assert torch.equal(to_channels_first(maps.permute(1, 2, 0)[None], 1), maps)
    tokens = torch.cat([torch.full((1, 2), 99.0), maps.flatten(1).T])
    assert torch.equal(to_channels_first(tokens[None], 1), maps)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet18", 64, ("conv1", "layer1", "layer2", "layer3", "layer4")),
        (
            "vit_b_16",
            64,
            ("conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in (2, 5, 8, 11))),
        ),
        ("swin_t", 64, ("features.0", "features.2", "features.4", "features.5", "features.7")),
        ("squeezenet1_1", 64, ("features.0", "features.4", "features.7", "features.10", "features.12")),
        (
            "densenet121",
            64,
            (
                "features.conv0",
                "features.transition1",
                "features.transition2",
                "features.denseblock3",
                "features.denseblock4",
            ),
        ),
        ("timm/efficientnet_lite0", 96, ("conv_stem", "blocks.1", "blocks.3", "blocks.5", "conv_head")),
    ],
)
def test_choose_layers_spans_the_network(name: str, size: int, layers: tuple[str, ...]) -> None:
    model = create_model(name, True, size)
    summary = summarize(model, size)
    assert choose_layers(model, summary, find_head(model, summary).path, 1) == layers


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("timm/vit_tiny_patch16_224", 64), ("swin_t", 64), ("squeezenet1_1", 64), ("densenet121", 64)],
)
def test_compute_activations_matches_forward_pass(name: str, size: int, photographs: dict[str, Image.Image]) -> None:
    torch.manual_seed(0)
    model = create_model(name, False, size)
    preprocessing = Preprocessing(size, size, "squash", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    head = find_head(model, summarize(model, size)).path
    activations = compute_activations(
        LoadedModel(name, model, preprocessing, head, None, "none"), photographs["china"], ()
    )
    assert activations.pixels.shape == (3, size, size)
    assert activations.filters is not None
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert torch.equal(activations.filters, first.weight)
    expected = (activations.pixels[None].float() / 255 - 0.5) / 0.2
    conv = torch.nn.functional.conv2d(expected, first.weight, first.bias, first.stride, first.padding)
    assert activations.layers[0].maps.shape[1] in (conv.shape[2], conv.shape[2] // 2)
    if activations.layers[0].name == activations.filter_layer:
        assert torch.allclose(activations.layers[0].maps, conv[0], atol=1e-4)
    for layer in activations.layers:
        assert layer.maps.ndim == 3
        assert layer.maps.shape[1] == layer.maps.shape[2] > 1
        assert layer.maps.numel() <= np.prod(layer.shape)
    with torch.inference_mode():
        assert torch.allclose(activations.probabilities.float(), model(expected).softmax(1)[0], atol=1e-5)


def test_check_layers_rejects() -> None:
    model = create_model("resnet18", True, 64)
    with pytest.raises(RecipeError) as error:
        check_layers(summarize(model, 64), ["layer2", "layr3", "avgpool"], 1)
    assert error.value.messages == (
        "--layer layr3: the forward pass calls no module of this name; did you mean 'layer3' or 'layer3.1' or "
        "'layer3.0'?",
        "--layer avgpool: its output is of shape [512, 1, 1], not a feature map; choose a layer with feature maps",
    )
