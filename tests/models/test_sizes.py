from __future__ import annotations

import pytest

from ftcli.errors import RecipeError
from ftcli.models.sizes import find_sizes, sketch_network

WHERE = "x.yaml:4:15: data.image_size"


def test_a_size_that_a_network_takes_is_examined() -> None:
    network, anatomy = sketch_network("swin_t", 100, WHERE)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert (anatomy.image_size, anatomy.output) == (100, (1000,))


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
def test_a_size_that_a_network_refuses_is_told_with_the_nearest_that_it_takes(
    name: str, size: int, sentence: str
) -> None:
    with pytest.raises(RecipeError) as error:
        sketch_network(name, size, WHERE)
    assert str(error.value) == f"{WHERE}: {sentence}"


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [("maxvit_t", 300, (224, 448)), ("timm/hiera_tiny_224", 100, (96, 128)), ("alexnet", 40, (64,))],
)
def test_sizes_are_found_below_and_above(name: str, size: int, sizes: tuple[int, ...]) -> None:
    assert find_sizes(name, size) == sizes
    for found in sizes:
        sketch_network(name, found, WHERE)
