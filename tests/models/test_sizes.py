from __future__ import annotations

import pytest

from ftcli.errors import RecipeError
from ftcli.models.sizes import create_meta_model, nearest_image_sizes

LOCATION = "x.yaml:4:15: data.image_size"


def test_create_meta_model_returns_summary_for_image_size() -> None:
    network, summary = create_meta_model("swin_t", 100, LOCATION)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert (summary.image_size, summary.output) == (100, (1000,))


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        (
            "vit_b_16",
            100,
            "vit_b_16 cannot be made for images of 100 x 100 pixels (Input shape indivisible by patch size!); "
            "give 96 or 112",
        ),
        (
            "inception_v3",
            64,
            "the network takes no images of 64 x 64 pixels (Calculated padded input size per channel: (2 x 2). "
            "Kernel size: (3 x 3). Kernel size can't be greater than actual input size); give 80",
        ),
        (
            "maxvit_t",
            64,
            "maxvit_t cannot be made for images of 64 x 64 pixels (Input size (16, 16) of block 0 is not divisible by "
            "partition size 7. Consider changing the partition size or the input size); give 224",
        ),
        (
            "swin_t",
            3,
            "the network takes no images of 3 x 3 pixels (Calculated padded input size per channel: (3 x 3). "
            "Kernel size: (4 x 4). Kernel size can't be greater than actual input size); give 4",
        ),
    ],
)
def test_create_meta_model_suggests_nearest_image_sizes(name: str, size: int, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        create_meta_model(name, size, LOCATION)
    assert str(error.value) == f"{LOCATION}: {sentence}"


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [("maxvit_t", 300, (224, 448)), ("timm/hiera_tiny_224", 100, (96, 128)), ("alexnet", 40, (64,))],
)
def test_nearest_image_sizes_returns_sizes_below_and_above(name: str, size: int, sizes: tuple[int, ...]) -> None:
    assert nearest_image_sizes(name, size) == sizes
    for supported in sizes:
        create_meta_model(name, supported, LOCATION)
