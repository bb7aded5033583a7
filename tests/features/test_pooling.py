"""Tests of pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.features.layers import AxisLayout, LayerSpec, count_prefix_tokens, has_class_token, resolve_layers
from ftcli.features.pooling import Pool, pool_shape, pool_values
from ftcli.models.factory import create_model


def _make_layer(shape: tuple[int, ...], channel_axis: int | None, num_prefix_tokens: int = 0) -> LayerSpec:
    return LayerSpec("block", "module", "block", shape, 0.5, AxisLayout(channel_axis, num_prefix_tokens))


def _make_random_values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).bfloat16()


VECTOR, MAP, MAP_LAST, TOKENS, TOKENS_LAST = (
    _make_layer((5,), 0),
    _make_layer((5, 3, 4), 0),
    _make_layer((3, 4, 5), 2),
    _make_layer((11, 5), 1, 2),
    _make_layer((5, 9), 0),
)
VIT = create_model("timm/vit_tiny_patch16_224", True, 32)


@pytest.mark.parametrize("pool", [None, "avg", "max", "flatten", "none", "token"])
@pytest.mark.parametrize(
    "layer", [VECTOR, MAP, MAP_LAST, TOKENS, TOKENS_LAST], ids=["vector", "map", "map_last", "tokens", "tokens_last"]
)
def test_pool_values_matches_torch(layer: LayerSpec, pool: Pool | None) -> None:
    values = _make_random_values(2, *layer.output_shape)
    exact = values.float()
    image = {  # (n, channels, positions)
        VECTOR: lambda: exact[:, :, None],
        MAP: lambda: exact.flatten(2),
        MAP_LAST: lambda: exact.flatten(1, 2).mT,
        TOKENS: lambda: exact[:, 2:].mT,
        TOKENS_LAST: lambda: exact,
    }[layer]()
    if pool == "token" and layer is not TOKENS:
        with pytest.raises(RecipeError) as error:
            pool_shape(VIT, layer, pool)
        assert str(error.value) == (
            f"--pool token: the output of block for an image, {list(layer.output_shape)}, has no class token; give "
            "avg, max, flatten or none, or choose a block of the transformer"
        )
        return
    expected = {
        None: image.mean(2),
        "avg": image.mean(2),
        "max": image.amax(2),
        "flatten": exact.flatten(1),
        "none": exact,
        "token": exact[:, 0],
    }[pool]
    pooled = pool_values(values, layer, pool)
    assert pooled.dtype == torch.float32
    assert torch.allclose(pooled, expected, rtol=1e-6)
    assert pooled.shape == (2, *pool_shape(VIT, layer, pool))


class _FixedSize(nn.Module):
    """A network for one image size, whose module `turned` has its channels last."""

    def __init__(self, num_channels: int, side: int = 8) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(3, num_channels, 1)
        self.turned = nn.Identity()
        self.fc = nn.Linear(num_channels, 2)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2] == self.side
        maps: Tensor = self.turned(self.first(images).permute(0, 2, 3, 1))
        logits: Tensor = self.fc(maps.mean((1, 2)))
        return logits


def test_pool_shape_refuses_ambiguous_axes() -> None:
    model = _FixedSize(8)
    layers = resolve_layers(model, "fc", ("first", "turned"), 8)
    for layer, pool, option in zip(layers, (None, "max"), ("--pool avg (the default)", "--pool max"), strict=True):
        with pytest.raises(RecipeError) as error:
            pool_shape(model, layer, pool)  # type: ignore[arg-type]
        assert str(error.value) == (
            f"{option}: the axes of [8, 8, 8], the output of {layer.name} for an image, are ambiguous: height, width "
            "or channels; give --pool flatten or --pool none, or choose another layer"
        )
        assert pool_shape(model, layer, "flatten") == (512,)
        assert pool_shape(model, layer, "none") == (8, 8, 8)
    channel_axis = {
        layer.name: layer.axis_layout.channel_axis
        for layer in resolve_layers(_FixedSize(5), "fc", ("first", "turned"), 8)
    }
    assert channel_axis == {"first": 0, "turned": 2}
    # 9 x 9 could be heads, 9 tokens and 9 dimensions, or windows.
    nine = resolve_layers(_FixedSize(5, 9), "fc", ("first", "turned"), 9)
    assert [layer.axis_layout for layer in nine] == [AxisLayout(), AxisLayout()]


def test_pool_shape_requires_class_token() -> None:
    registers = create_model("timm/vit_base_patch16_reg4_gap_256", True, 32)
    assert (count_prefix_tokens(registers), has_class_token(registers)) == (4, False)
    layers = resolve_layers(registers, "head", ("blocks.3",), 32)
    with pytest.raises(RecipeError) as error:
        pool_shape(registers, layers[0], "token")
    assert str(error.value) == "--pool token: the network has no class token; give avg, max, flatten or none"
    vit = create_model("vit_b_16", True, 32)
    (block,) = resolve_layers(vit, "heads.head", ("encoder.layers.encoder_layer_2",), 32)
    assert pool_shape(vit, block, "token") == (768,)
