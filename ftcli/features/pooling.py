"""Pooling of layer outputs to one feature vector per image."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ftcli.errors import RecipeError
from ftcli.features.layers import LayerSpec, has_class_token

Pool = Literal["avg", "max", "flatten", "none", "token"]


def pool_shape(model: nn.Module, layer: LayerSpec, pool: Pool | None) -> tuple[int, ...]:
    """Return the shape of `pool_values` for one image.

    Raises RecipeError for `token` without a class token, and for a mean or maximum over unknown axes.
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
                f"--pool token: the output of {layer.name} for an image, {list(shape)}, has no class token; give avg, "
                "max, flatten or none, or choose a block of the transformer"
            )
    if axis_layout.channel_axis is None:
        option = "--pool avg (the default)" if pool is None else f"--pool {pool}"
        raise RecipeError(
            f"{option}: the axes of {list(shape)}, the output of {layer.name} for an image, are ambiguous: height, "
            "width or channels; give --pool flatten or --pool none, or choose another layer"
        )
    return (shape[axis_layout.channel_axis],)


def pool_values(values: Tensor, layer: LayerSpec, pool: Pool | None) -> Tensor:
    """Pool a layer's output for a batch, (n, *shape), and return it as float32 on its device.

    avg (also None) and max are over all positions of the image, without class and register tokens; token is the class
    token. `pool_shape` must have accepted the layer. The result may share memory with `values`.
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
