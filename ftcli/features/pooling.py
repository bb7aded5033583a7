"""What is kept of a layer's output."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.features.axis_layout import has_class_token
from ftcli.features.layers import LayerSpec

Pool = Literal["avg", "max", "flatten", "none", "token"]


def pool_shape(model: nn.Module, layer: LayerSpec, pool: Pool | None) -> tuple[int, ...]:
    """The shape for one image of what `pool_values` keeps.

    Raises RecipeError for `token` where the layer's output has no class token, and for a mean or maximum over the image
    where it cannot be told which of the axes are the image's.
    """
    shape, axis_layout = layer.output_shape, layer.axis_layout
    if pool == "none" or (len(shape) < 2 and pool != "token"):
        return (1,) if not shape and pool == "flatten" else shape
    if pool == "flatten":
        return (math.prod(shape),)
    if pool == "token":
        if not has_class_token(model):
            raise RecipeError("--pool token: the network has no class token; give avg, max, flatten or none")
        if len(shape) != 2 or axis_layout.channel_axis is None or not axis_layout.num_prefix_tokens:
            raise RecipeError(
                f"--pool token: {layer.name} gives {list(shape)} for an image, in which there is no class token; give "
                "avg, max, flatten or none, or choose a block of the transformer"
            )
    if axis_layout.channel_axis is None:
        subject = "the mean, which is taken where --pool is not given" if pool is None else f"--pool {pool}"
        raise RecipeError(
            f"{subject}: {layer.name} gives {list(shape)} for an image, and which of these are its height and width and "
            "which its channels cannot be told; give --pool flatten or --pool none, or choose another layer"
        )
    return (shape[axis_layout.channel_axis],)


def pool_values(values: Tensor, layer: LayerSpec, pool: Pool | None) -> Tensor:
    """What is kept of a layer's output for a batch, (n, *shape), as float32, where it was computed.

    avg and max are over all places of the image, class and register tokens left out; a vector has one place. flatten
    lays everything in a row, none keeps it as it is, token takes the class token. None is avg. `pool_shape` must have
    accepted the layer. What is returned may share its memory with `values`.
    """
    values = values.float()
    if pool == "flatten":
        return values.reshape(len(values), -1)
    if pool == "none" or (values.ndim < 3 and pool != "token"):
        return values
    axis_layout = layer.axis_layout
    assert axis_layout.channel_axis is not None
    if values.ndim == 3:
        token_axis = 2 - axis_layout.channel_axis
        if pool == "token":
            return values.select(token_axis, 0)
        values = values.narrow(
            token_axis, axis_layout.num_prefix_tokens, values.shape[token_axis] - axis_layout.num_prefix_tokens
        )
    spatial_axes = [axis for axis in range(1, values.ndim) if axis != axis_layout.channel_axis + 1]
    return values.amax(spatial_axes) if pool == "max" else values.mean(spatial_axes)
