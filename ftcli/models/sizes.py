"""Networks at the size of image that a recipe asks for, and the sizes near it where a network does not take that."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.factory import create_model, default_preprocessing, has_fixed_image_size
from ftcli.models.summary import ModelSummary, UnsupportedImageSizeError, summarize

_SIZE_MULTIPLES = (1, 8, 14, 16, 28, 32, 64, 128)
"""Sizes that networks take are multiples of their patches, windows and strides; so they are looked for among those of
these numbers and of the size of the model's own weights."""


def create_meta_model(name: str, image_size: int, location: str) -> tuple[nn.Module, ModelSummary]:
    """A network on the meta device, as `create_model` makes it, and what an image of this size does in it.

    Raises RecipeError that begins with `where`: for a size that the network does not take it names the nearest that
    were found below and above.
    """
    try:
        network = create_model(name, True, image_size, location)
        return network, summarize(network, image_size, location)
    except UnsupportedImageSizeError as error:
        sizes = " or ".join(str(size) for size in nearest_image_sizes(name, image_size))
        remedy = f"give {sizes}" if sizes else "choose another model"
        raise RecipeError(f"{error.problem}; {remedy}") from error


def nearest_image_sizes(name: str, image_size: int) -> tuple[int, ...]:
    """The nearest sizes below and above that a network takes, of those that it was tried with; each may be missing."""
    native_size = default_preprocessing(name, "none").image_size
    network = None if has_fixed_image_size(name) else create_model(name, True, native_size)
    multiples = {*_SIZE_MULTIPLES, native_size}
    below = {(image_size - 1) // step * step for step in multiples} - {0}
    above = {(image_size // step + 1) * step for step in multiples}
    supported = [_first_supported(name, network, sizes) for sizes in (sorted(below, reverse=True), sorted(above))]
    return tuple(size for size in supported if size is not None)


def _first_supported(name: str, network: nn.Module | None, sizes: Iterable[int]) -> int | None:
    for size in sizes:
        try:
            summarize(create_model(name, True, size) if network is None else network, size)
        except RecipeError:
            continue
        return size
    return None
