"""Changes of images that a few numbers decide, so that they can be drawn at one place and made at another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ftcli.recipe import schema


@dataclass(frozen=True)
class BatchTransformParams:
    """The changes of one kind to the n images of a batch that are still to be made: int64 (n, 1), 1 where an image is
    flipped, or (n, 4), the top, left, height and width of what is blackened."""

    kind: Literal["across", "over", "erase"]
    params: Tensor

    def to(self, device: torch.device) -> BatchTransformParams:
        """The same on a device, copied from pinned memory while the processor goes on."""
        return BatchTransformParams(self.kind, self.params.to(device, non_blocking=True))

    def pin_memory(self) -> BatchTransformParams:
        """The same in memory that a GPU can copy from by itself."""
        return BatchTransformParams(self.kind, self.params.pin_memory())


@dataclass(frozen=True)
class Flip:
    """Left and right change places (across), or top and bottom (over), with probability p.

    `draw` takes its numbers from torch's global CPU generator, as torchvision's transform does; `apply` makes of an RGB
    image what `apply_batch_transforms` makes of a batch.
    """

    kind: Literal["across", "over"]
    p: float

    def make_params(self, _size: tuple[int, int]) -> tuple[int, ...]:
        return (int(not bool(torch.rand(1) >= self.p)),)

    def apply(self, image: Image.Image, params: tuple[int, ...]) -> Image.Image:
        method = Image.Transpose.FLIP_LEFT_RIGHT if self.kind == "across" else Image.Transpose.FLIP_TOP_BOTTOM
        return image.transpose(method) if params[0] else image


class Erase:
    """A rectangle whose share of the area lies in `scale` is blackened with probability p. As `Flip` otherwise."""

    kind: Literal["erase"] = "erase"

    def __init__(self, p: float, scale: tuple[float, float]) -> None:
        self._random_erasing = v2.RandomErasing(p, scale)

    def make_params(self, size: tuple[int, int]) -> tuple[int, ...]:
        if torch.rand(1) >= self._random_erasing.p:
            return 0, 0, 0, 0
        params: dict[str, Any] = self._random_erasing.make_params([torch.empty((3, size[1], size[0]), device="meta")])
        # torchvision gives up after ten rectangles that do not fit, and tells so by a missing value.
        return (0, 0, 0, 0) if params["v"] is None else (params["i"], params["j"], params["h"], params["w"])

    def apply(self, image: Image.Image, params: tuple[int, ...]) -> Image.Image:
        top, left, height, width = params
        if not height or not width:
            return image
        erased = image.copy()
        erased.paste((0, 0, 0), (left, top, left + width, top + height))
        return erased


BatchTransform = Flip | Erase
BatchTransformConfig = schema.RandomHorizontalFlip | schema.RandomVerticalFlip | schema.RandomErasing
"""The transforms of a recipe that are such changes; the others need the pixels to be drawn, or cost more to make."""


def build_batch_transform(transform: BatchTransformConfig) -> BatchTransform:
    """The change that a transform of a recipe is."""
    match transform:
        case schema.RandomHorizontalFlip(p=p):
            return Flip("across", p)
        case schema.RandomVerticalFlip(p=p):
            return Flip("over", p)
        case schema.RandomErasing(p=p, scale=scale):
            return Erase(p, scale)


def apply_batch_transforms(images: Tensor, transform_params: Sequence[BatchTransformParams]) -> Tensor:
    """Make the changes to uint8 images (n, 3, h, w), one kind after the other; both are on one device. Gives the very
    pixels that `BatchTransform.apply` gives; the images themselves stay."""
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    for transform in transform_params:
        params = transform.params.view(len(images), -1, 1, 1, 1)
        if transform.kind == "erase":
            top, left, height, width = params.unbind(1)
            is_erased = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
            images = images.masked_fill(is_erased, 0)
        else:
            images = torch.where(params[:, 0] > 0, images.flip(3 if transform.kind == "across" else 2), images)
    return images
