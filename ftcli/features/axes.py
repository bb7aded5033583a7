"""Which axes of a layer's output are the image's, and which one holds the channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import VisionTransformer


@dataclass(frozen=True)
class Axes:
    """`channels` is the axis, of those of one image, along which the channels lie; the others are places of the image.
    None where that cannot be told. `prefixes` is how many places of a row of tokens come before those of the image:
    class and register tokens."""

    channels: int | None = None
    prefixes: int = 0


def find_axes(model: nn.Module, shape: tuple[int, ...], larger: tuple[int, ...] | None) -> Axes:
    """The axes of a layer's output of this shape for one image.

    `larger` is its shape for an image of twice the size: axes that grow are places of the image, the one that does not
    holds the channels. Where none grows, as behind an adaptive pooling, or where `larger` is None because the network
    takes no other images, two equal sides next to each other are the image's, if a third differs. In the latter case
    they must not be as many as tokens may be, since attention has heads, tokens and dimensions too.
    """
    if len(shape) == 1:
        return Axes(0)
    if len(shape) == 2:
        return _find_row(_Tokens(model), shape, larger)
    if len(shape) == 3:
        grown = None if larger is None else tuple(axis for axis in range(3) if shape[axis] != larger[axis])
        if grown:
            return Axes(0 if grown == (1, 2) else 2 if grown == (0, 1) else None)
        doubtful = grown is None and shape[1] > 1 and _Tokens(model).list_counts(shape[1])
        return Axes(None if doubtful else _find_odd(shape))
    return Axes()


def _find_odd(shape: tuple[int, ...]) -> int | None:
    first, second, third = shape
    if second == third and (first != second or first == 1):
        return 0
    return 2 if first == second != third else None


def _find_row(tokens: _Tokens, shape: tuple[int, ...], larger: tuple[int, ...] | None) -> Axes:
    """A row of tokens, each with its channels, or of channels, each with its tokens (inside an MLP-Mixer)."""
    grown = (0, 1) if larger is None else tuple(axis for axis in (0, 1) if shape[axis] != larger[axis])
    if larger is not None and len(grown) == 2:
        return Axes()
    sizes = {axis: (shape[axis], None if larger is None else larger[axis]) for axis in grown}
    able = [(axis, before) for axis in grown for before in tokens.list_counts(*sizes[axis])]
    if not able and shape.count(1) == 1:  # a class token alone
        able = [(shape.index(1), 0)]
    return Axes(1 - able[0][0], able[0][1]) if len(able) == 1 else Axes()


class _Tokens:
    """How many tokens a network may have: a square of patches, and perhaps those that come before them."""

    def __init__(self, model: nn.Module) -> None:
        told = {getattr(module, "num_patches", None) for module in model.modules()} - {None}
        self.patches = told.pop() if len(told) == 1 else None
        self.prefixes = count_prefixes(model)

    def list_counts(self, tokens: int, larger: int | None = None) -> list[int]:
        """How many of some tokens may come before the image's, of which there are `larger` in an image of twice the
        size; None stands for a network that takes no such image."""
        if larger is None:
            return [before for before in sorted({0, self.prefixes}) if self._is_grid(tokens - before)]
        if not self.prefixes:
            return [0]
        return [before for before in (0, self.prefixes) if _is_square(tokens - before) and _is_square(larger - before)]

    def _is_grid(self, places: int) -> bool:
        return places == self.patches if isinstance(self.patches, int) else _is_square(places)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def count_prefixes(model: nn.Module) -> int:
    """How many tokens, the class token the first of them, a transformer puts before those of the image."""
    if isinstance(model, VisionTransformer):
        return 1
    given = getattr(model, "num_prefix_tokens", None)
    if isinstance(given, int):
        return given
    token = getattr(model, "cls_token", None)
    return token.shape[1] if isinstance(token, Tensor) and token.ndim == 3 else 0


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token of a transformer is its class token."""
    return isinstance(model, VisionTransformer) or isinstance(getattr(model, "cls_token", None), Tensor)
