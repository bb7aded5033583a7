"""Networks at the size of image that a recipe asks for, and the sizes near it where a network does not take that."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.anatomy import Anatomy, SizeRefused, examine
from ftcli.models.zoo import build_network, default_preprocessing, is_made_for_one_size

_STEPS = (1, 8, 14, 16, 28, 32, 64, 128)
"""Sizes that networks take are multiples of their patches, windows and strides; so they are looked for among those of
these numbers and of the size of the model's own weights."""


def sketch_network(name: str, image_size: int, where: str) -> tuple[nn.Module, Anatomy]:
    """A network on the meta device, as `build_network` makes it, and what an image of this size does in it.

    Raises RecipeError that begins with `where`: for a size that the network does not take it names the nearest that
    were found below and above.
    """
    try:
        network = build_network(name, True, image_size, where)
        return network, examine(network, image_size, where)
    except SizeRefused as error:
        sizes = " or ".join(str(size) for size in find_sizes(name, image_size))
        remedy = f"give {sizes}" if sizes else "choose another model"
        raise RecipeError(f"{error.told}; {remedy}") from error


def find_sizes(name: str, image_size: int) -> tuple[int, ...]:
    """The nearest sizes below and above that a network takes, of those that it was tried with; each may be missing."""
    own = default_preprocessing(name, "none").image_size
    network = None if is_made_for_one_size(name) else build_network(name, True, own)
    steps = {*_STEPS, own}
    below = {(image_size - 1) // step * step for step in steps} - {0}
    above = {(image_size // step + 1) * step for step in steps}
    found = [_find_first(name, network, sizes) for sizes in (sorted(below, reverse=True), sorted(above))]
    return tuple(size for size in found if size is not None)


def _find_first(name: str, network: nn.Module | None, sizes: Iterable[int]) -> int | None:
    for size in sizes:
        try:
            examine(build_network(name, True, size) if network is None else network, size)
        except RecipeError:
            continue
        return size
    return None
