"""Channel and spatial axes of layer outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import VisionTransformer


@dataclass(frozen=True)
class AxisLayout:
    """The axes of a layer's output for one image.

    `channel_axis` is None if it is unknown; the other axes are spatial. `num_prefix_tokens` counts the class and
    register tokens before those of the image.
    """

    channel_axis: int | None = None
    num_prefix_tokens: int = 0


def infer_axis_layout(model: nn.Module, shape: tuple[int, ...], larger_shape: tuple[int, ...] | None) -> AxisLayout:
    """Infer the axes of a layer's output with this shape for one image.

    `larger_shape` is its shape for an image of twice the size: axes that grow are spatial, the other holds the
    channels. If none grows (after adaptive pooling), or if `larger_shape` is None because the network has a fixed image
    size, two equal sides next to each other are spatial if the third differs. Without `larger_shape` their length must
    not be a possible number of tokens, since attention has axes for heads, tokens and dimensions.
    """
    if len(shape) == 1:
        return AxisLayout(0)
    if len(shape) == 2:
        return _infer_token_layout(_TokenCounts(model), shape, larger_shape)
    if len(shape) == 3:
        grown_axes = (
            None if larger_shape is None else tuple(axis for axis in range(3) if shape[axis] != larger_shape[axis])
        )
        if grown_axes:
            return AxisLayout(0 if grown_axes == (1, 2) else 2 if grown_axes == (0, 1) else None)
        is_ambiguous = grown_axes is None and shape[1] > 1 and _TokenCounts(model).list_prefix_counts(shape[1])
        return AxisLayout(None if is_ambiguous else _find_channel_axis(shape))
    return AxisLayout()


def _find_channel_axis(shape: tuple[int, ...]) -> int | None:
    first, second, third = shape
    if second == third and (first != second or first == 1):
        return 0
    return 2 if first == second != third else None


def _infer_token_layout(
    token_counts: _TokenCounts, shape: tuple[int, ...], larger_shape: tuple[int, ...] | None
) -> AxisLayout:
    """Infer the axes of (tokens, channels), or of (channels, tokens) as within an MLP-Mixer."""
    grown_axes = (0, 1) if larger_shape is None else tuple(axis for axis in (0, 1) if shape[axis] != larger_shape[axis])
    if larger_shape is not None and len(grown_axes) == 2:
        return AxisLayout()
    sizes = {axis: (shape[axis], None if larger_shape is None else larger_shape[axis]) for axis in grown_axes}
    candidates = [
        (axis, num_prefix_tokens)
        for axis in grown_axes
        for num_prefix_tokens in token_counts.list_prefix_counts(*sizes[axis])
    ]
    if not candidates and shape.count(1) == 1:  # the class token alone
        candidates = [(shape.index(1), 0)]
    return AxisLayout(1 - candidates[0][0], candidates[0][1]) if len(candidates) == 1 else AxisLayout()


class _TokenCounts:
    """The possible numbers of tokens in a network: a square grid of patches, and prefix tokens."""

    def __init__(self, model: nn.Module) -> None:
        patch_counts = {getattr(module, "num_patches", None) for module in model.modules()} - {None}
        self.num_patches = patch_counts.pop() if len(patch_counts) == 1 else None
        self.num_prefix_tokens = count_prefix_tokens(model)

    def list_prefix_counts(self, num_tokens: int, num_larger: int | None = None) -> list[int]:
        """Return the possible numbers of prefix tokens among `num_tokens`.

        `num_larger` is the number of tokens for an image of twice the size, None for a network of fixed image size.
        """
        if num_larger is None:
            return [
                num_prefix_tokens
                for num_prefix_tokens in sorted({0, self.num_prefix_tokens})
                if self._is_grid(num_tokens - num_prefix_tokens)
            ]
        if not self.num_prefix_tokens:
            return [0]
        return [
            num_prefix_tokens
            for num_prefix_tokens in (0, self.num_prefix_tokens)
            if _is_square(num_tokens - num_prefix_tokens) and _is_square(num_larger - num_prefix_tokens)
        ]

    def _is_grid(self, num_tokens: int) -> bool:
        return num_tokens == self.num_patches if isinstance(self.num_patches, int) else _is_square(num_tokens)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def count_prefix_tokens(model: nn.Module) -> int:
    """Return the number of class and register tokens, which come before those of the image."""
    if isinstance(model, VisionTransformer):
        return 1
    num_prefix_tokens = getattr(model, "num_prefix_tokens", None)
    if isinstance(num_prefix_tokens, int):
        return num_prefix_tokens
    token = getattr(model, "cls_token", None)
    return token.shape[1] if isinstance(token, Tensor) and token.ndim == 3 else 0


def has_class_token(model: nn.Module) -> bool:
    """Return whether the network is a transformer whose first token is the class token."""
    return isinstance(model, VisionTransformer) or isinstance(getattr(model, "cls_token", None), Tensor)
