"""From an RGB image to the network's input: resizing, random augmentation, normalisation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image, features
from torch import Tensor
from torchvision.transforms import v2

from ftcli.data.changes import Change, Changing, build_change
from ftcli.recipe import schema
from ftcli.results import Preprocessing

Step = Callable[[Image.Image], Image.Image]

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


_MARGIN = 2
"""How many times larger than it is resized to an image is decoded at least. A JPEG decoded at 1/k of its size gives the
means of blocks of k by k pixels. Resizing by 2 or more averages several of these, and leaves pixels within 1 of 255 on
average of those of the whole image; without a margin they are twice as far, and some classes change."""


@dataclass(frozen=True, eq=False)
class ImageTransform:
    """How an image reaches the network: as uint8 (3, size, size), red green blue.

    First come the `fixed` steps, without chance; then those of `chance`, which draw from torch's global CPU generator
    alone; then `changes`, which draw from it too, and are made here or, where `is_deferred`, by whoever has the pixels
    then. `needed` is the length of the shorter side that a file is decoded with at least, None for all of it.
    `identity` is a text that decides, with the image file and the state of the generator, every pixel;
    `fixed_identity` decides what the fixed steps give.
    """

    size: int
    fixed: tuple[Step, ...]
    chance: tuple[Step, ...]
    changes: tuple[Change, ...]
    needed: int | None
    identity: str
    fixed_identity: str
    is_deferred: bool = False

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it; if not, every look at an image gives the same."""
        return bool(self.chance or self.changes)

    def __call__(self, image: Image.Image) -> Tensor:
        """What becomes of an image that `data.images` has read, every change made."""
        made, _ = replace(self, is_deferred=False).vary(self.fix(image))
        pixels: Tensor = v2.functional.pil_to_tensor(made)
        return pixels

    def fix(self, image: Image.Image) -> Image.Image:
        """An RGB or grey image after the fixed steps, as RGB."""
        # Grey is resized as the one channel that it is: three equal ones give equal results, in three times the time.
        for step in self.fixed:
            image = step(image)
        return image if image.mode == "RGB" else image.convert("RGB")

    def vary(self, image: Image.Image) -> tuple[Image.Image, tuple[tuple[int, ...], ...]]:
        """A fixed image after everything that chance decides, and the numbers of each change that is left: of none
        unless they are deferred."""
        for step in self.chance:
            image = step(image)
        drawn = tuple(change.draw(image.size) for change in self.changes)
        if self.is_deferred:
            return image, drawn
        for change, numbers in zip(self.changes, drawn, strict=True):
            image = change.apply(image, numbers)
        return image, ()

    def defer(self) -> ImageTransform:
        """The same transform with its changes left to `changes.apply_changes`, for batches that go to a device."""
        return replace(self, is_deferred=True)


def build_eval_transform(pre: Preprocessing) -> ImageTransform:
    """How an image reaches the network when nothing is random. Resizing is antialiased unless interpolation is
    nearest."""
    return _build(pre, ())


def build_train_transform(pre: Preprocessing, augment: schema.Preset | tuple[schema.Transform, ...]) -> ImageTransform:
    """How an image reaches the network in training: the transforms of a preset or list, in order.

    Without a random_resized_crop the image first reaches its size as in evaluation.
    """
    return _build(pre, PRESETS[augment] if isinstance(augment, str) else augment)


class Normalizer:
    """Turns uint8 images into what the network was trained on: scaled to [0, 1], less the mean, over the std."""

    def __init__(self, pre: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(pre.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(pre.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) on the normalizer's device to float32 of the same shape and memory format."""
        mean, std = self._mean, self._std
        if images.is_contiguous(memory_format=torch.channels_last):
            # Laid out for a row of pixels: three numbers alone are applied to three at a time, in four times the time.
            mean, std = (_spread(numbers, images.shape[3]) for numbers in (mean, std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def _spread(numbers: Tensor, width: int) -> Tensor:
    """A number for each channel, (1, 3, 1, 1), as one for each pixel of a row, channels last."""
    return numbers.expand(1, 3, 1, width).contiguous(memory_format=torch.channels_last)


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


def _build(pre: Preprocessing, transforms: tuple[schema.Transform, ...]) -> ImageTransform:
    crops = [transform for transform in transforms if isinstance(transform, schema.RandomResizedCrop)]
    needed = _find_needed(pre, crops[0] if crops else None)
    resizing = {name: getattr(pre, name) for name in ("image_size", "resize_size", "resize", "interpolation")}
    reading = {"needed": needed, **_list_versions()}
    apart = len(transforms)
    while apart and isinstance(transforms[apart - 1], Changing):
        apart -= 1
    return ImageTransform(
        pre.image_size,
        () if crops else tuple(_fit(pre)),
        tuple(_build_step(transform, pre) for transform in transforms[:apart]),
        tuple(build_change(transform) for transform in transforms[apart:] if isinstance(transform, Changing)),
        needed,
        _write({**resizing, **reading, "transforms": [transform.model_dump(mode="json") for transform in transforms]}),
        _write(reading if crops else {**resizing, **reading}),
    )


def _find_needed(pre: Preprocessing, crop: schema.RandomResizedCrop | None) -> int | None:
    """The length of the shorter side that an image must keep so that no detail is missed when it is resized.

    The smallest part that is cut out is `share` of the area, and its shorter side is the root of share / ratio of the
    image's shorter side or more: it must not have to grow.
    """
    if pre.interpolation == "nearest":  # it picks pixels of the file, not averages of them
        return None
    if crop is None:
        return _MARGIN * pre.resize_size
    longest = max(crop.ratio[1], 1 / crop.ratio[0])
    return max(_MARGIN * pre.image_size, math.ceil(pre.image_size * math.sqrt(longest / crop.scale[0])))


@cache
def _list_versions() -> dict[str, str | None]:
    """What decodes and changes images. Other versions of it may round another way."""
    decoders = {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif", "jpg_2000")}
    return {"pillow": PIL.__version__, "torchvision": torchvision.__version__, **decoders}


def _write(parts: dict[str, Any]) -> str:
    return json.dumps(parts, sort_keys=True)


def _fit(pre: Preprocessing) -> list[Step]:
    """The steps that bring an image to its size without chance."""
    interpolation = v2.InterpolationMode(pre.interpolation)
    if pre.resize == "pad":
        return [_PadToSquare(pre.image_size, interpolation)]
    if pre.resize == "crop":
        return [_trim, v2.Resize([pre.resize_size], interpolation), v2.CenterCrop(pre.image_size)]
    return [v2.Resize([pre.resize_size, pre.resize_size], interpolation), v2.CenterCrop(pre.image_size)]


class _AtOnce:
    """A change that is made where it is drawn, for another step comes after it."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.change.apply(image, self.change.draw(image.size))


def _build_step(transform: schema.Transform, pre: Preprocessing) -> Step:
    """A transform as a step from one RGB image to another."""
    step: Step
    match transform:
        case schema.RandomResizedCrop(scale=scale, ratio=ratio):
            step = v2.RandomResizedCrop(pre.image_size, scale, ratio, v2.InterpolationMode(pre.interpolation))
        case schema.RandomRotation(degrees=degrees):
            step = v2.RandomRotation(degrees, v2.InterpolationMode.BILINEAR)
        case schema.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue):
            step = v2.ColorJitter(brightness, contrast, saturation, hue)
        case schema.RandAugment(num_ops=num_ops, magnitude=magnitude):
            step = v2.RandAugment(num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
        case _:
            step = _AtOnce(build_change(transform))
    return step
