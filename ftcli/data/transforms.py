"""From an RGB image to the network's input: resizing, random augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ftcli.recipe import schema
from ftcli.results import Preprocessing

ImageTransform = Callable[[Image.Image], Tensor]

_FLIP = schema.RandomHorizontalFlip(name="random_horizontal_flip")
_CROP = schema.RandomResizedCrop(name="random_resized_crop")

PRESETS: dict[schema.Preset, tuple[schema.Transform, ...]] = {
    "none": (),
    "flips": (_FLIP, schema.RandomVerticalFlip(name="random_vertical_flip")),
    "light": (schema.RandomResizedCrop(name="random_resized_crop", scale=(0.8, 1.0)), _FLIP),
    "standard": (_CROP, _FLIP),
    "strong": (
        _CROP,
        _FLIP,
        schema.RandAugment(name="rand_augment"),
        schema.RandomErasing(name="random_erasing"),
    ),
}
"""What each preset stands for. standard is the augmentation of Szegedy et al., arXiv 1409.4842, with which most
ImageNet weights were trained."""


def build_eval_transform(pre: Preprocessing) -> ImageTransform:
    """How an image reaches the network when nothing is random.

    Gives uint8 (3, image_size, image_size), red green blue. Resizing is antialiased unless interpolation is nearest.
    """
    return _compose([*_fit(pre), v2.PILToTensor()])


def build_train_transform(pre: Preprocessing, augment: schema.Preset | tuple[schema.Transform, ...]) -> ImageTransform:
    """How an image reaches the network in training: the transforms of a preset or list, in order.

    Without a random_resized_crop the image first reaches its size as in evaluation. Gives uint8
    (3, image_size, image_size); draws from torch's global CPU generator alone.
    """
    transforms = PRESETS[augment] if isinstance(augment, str) else augment
    sized = any(isinstance(transform, schema.RandomResizedCrop) for transform in transforms)
    steps = [_build(transform, pre) for transform in transforms]
    return _compose([*([] if sized else _fit(pre)), *steps, v2.PILToTensor()])


class Normalizer:
    """Turns uint8 images into what the network was trained on: scaled to [0, 1], less the mean, over the std."""

    def __init__(self, pre: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(pre.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(pre.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) on the normalizer's device to float32 of the same shape and memory format."""
        return images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


class _PadToSquare:
    """Resizes the longer side to `size` and centres the image on black."""

    def __init__(self, size: int, interpolation: v2.InterpolationMode) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        longer = max(image.size)
        width, height = (max(1, round(side * self.size / longer)) for side in image.size)
        resized = v2.functional.resize(image, [height, width], self.interpolation)
        canvas = Image.new("RGB", (self.size, self.size))
        canvas.paste(resized, ((self.size - width) // 2, (self.size - height) // 2))
        return canvas


def _trim(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than eight times as long as wide: resized whole it could fill the memory,
    and the centre that is cut out then lies well within."""
    width, height = image.size
    longest = 8 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


def _compose(steps: list[Any]) -> ImageTransform:
    composed: ImageTransform = v2.Compose(steps)
    return composed


def _fit(pre: Preprocessing) -> list[Any]:
    """The steps that bring an image to its size without chance."""
    interpolation = v2.InterpolationMode(pre.interpolation)
    if pre.resize == "pad":
        return [_PadToSquare(pre.image_size, interpolation)]
    if pre.resize == "shorter":
        return [_trim, v2.Resize([pre.resize_size], interpolation), v2.CenterCrop(pre.image_size)]
    return [v2.Resize([pre.resize_size, pre.resize_size], interpolation), v2.CenterCrop(pre.image_size)]


def _build(transform: schema.Transform, pre: Preprocessing) -> Any:
    match transform:
        case schema.RandomResizedCrop(scale=scale, ratio=ratio):
            return v2.RandomResizedCrop(pre.image_size, scale, ratio, v2.InterpolationMode(pre.interpolation))
        case schema.RandomHorizontalFlip(p=p):
            return v2.RandomHorizontalFlip(p)
        case schema.RandomVerticalFlip(p=p):
            return v2.RandomVerticalFlip(p)
        case schema.RandomRotation(degrees=degrees):
            return v2.RandomRotation(degrees, v2.InterpolationMode.BILINEAR)
        case schema.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue):
            return v2.ColorJitter(brightness, contrast, saturation, hue)
        case schema.RandAugment(num_ops=num_ops, magnitude=magnitude):
            return v2.RandAugment(num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
        case schema.RandomErasing(p=p, scale=scale):
            # It knows tensors only; the others are faster, and resize better, on images.
            return v2.Compose([v2.PILToTensor(), v2.RandomErasing(p, scale), v2.ToPILImage()])
        case _:
            assert_never(transform)
