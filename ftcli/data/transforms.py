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

from ftcli.data.changes import BatchTransform, BatchTransformConfig, build_batch_transform
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


_DECODE_MARGIN = 2
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
    `deterministic_fingerprint` decides what the fixed steps give.
    """

    size: int
    deterministic: tuple[Step, ...]
    random: tuple[Step, ...]
    batch_transforms: tuple[BatchTransform, ...]
    min_decode_size: int | None
    fingerprint: str
    deterministic_fingerprint: str
    is_deferred: bool = False

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it; if not, every look at an image gives the same."""
        return bool(self.random or self.batch_transforms)

    def __call__(self, image: Image.Image) -> Tensor:
        """What becomes of an image that `data.images` has read, every change made."""
        augmented, _ = replace(self, is_deferred=False).apply_random(self.apply_deterministic(image))
        pixels: Tensor = v2.functional.pil_to_tensor(augmented)
        return pixels

    def apply_deterministic(self, image: Image.Image) -> Image.Image:
        """An RGB or grey image after the fixed steps, as RGB."""
        # Grey is resized as the one channel that it is: three equal ones give equal results, in three times the time.
        for step in self.deterministic:
            image = step(image)
        return image if image.mode == "RGB" else image.convert("RGB")

    def apply_random(self, image: Image.Image) -> tuple[Image.Image, tuple[tuple[int, ...], ...]]:
        """A fixed image after everything that chance decides, and the numbers of each change that is left: of none
        unless they are deferred."""
        for step in self.random:
            image = step(image)
        params_per_transform = tuple(transform.make_params(image.size) for transform in self.batch_transforms)
        if self.is_deferred:
            return image, params_per_transform
        for transform, params in zip(self.batch_transforms, params_per_transform, strict=True):
            image = transform.apply(image, params)
        return image, ()

    def defer_to_device(self) -> ImageTransform:
        """The same transform with its changes left to `changes.apply_batch_transforms`, for batches that go to a device."""
        return replace(self, is_deferred=True)


def build_eval_transform(preprocessing: Preprocessing) -> ImageTransform:
    """How an image reaches the network when nothing is random. Resizing is antialiased unless interpolation is
    nearest."""
    return _build_transform(preprocessing, ())


def build_train_transform(
    preprocessing: Preprocessing, augment: schema.Preset | tuple[schema.Transform, ...]
) -> ImageTransform:
    """How an image reaches the network in training: the transforms of a preset or list, in order.

    Without a random_resized_crop the image first reaches its size as in evaluation.
    """
    return _build_transform(preprocessing, PRESETS[augment] if isinstance(augment, str) else augment)


class Normalizer:
    """Turns uint8 images into what the network was trained on: scaled to [0, 1], less the mean, over the std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) on the normalizer's device to float32 of the same shape and memory format."""
        mean, std = self._mean, self._std
        if images.is_contiguous(memory_format=torch.channels_last):
            # Laid out for a row of pixels: three numbers alone are applied to three at a time, in four times the time.
            mean, std = (_repeat_per_pixel(channel_values, images.shape[3]) for channel_values in (mean, std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def _repeat_per_pixel(channel_values: Tensor, width: int) -> Tensor:
    """A number for each channel, (1, 3, 1, 1), as one for each pixel of a row, channels last."""
    return channel_values.expand(1, 3, 1, width).contiguous(memory_format=torch.channels_last)


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


def _crop_extreme_aspect_ratio(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than eight times as long as wide: resized whole it could fill the memory,
    and the centre that is cut out then lies well within."""
    width, height = image.size
    max_side = 8 * min(width, height)
    if max(width, height) <= max_side:
        return image
    left, top = max(0, width - max_side) // 2, max(0, height - max_side) // 2
    return image.crop((left, top, min(width, left + max_side), min(height, top + max_side)))


def _build_transform(preprocessing: Preprocessing, transforms: tuple[schema.Transform, ...]) -> ImageTransform:
    crops = [transform for transform in transforms if isinstance(transform, schema.RandomResizedCrop)]
    min_decode_size = _compute_min_decode_size(preprocessing, crops[0] if crops else None)
    resize_fields = {
        name: getattr(preprocessing, name) for name in ("image_size", "resize_size", "resize", "interpolation")
    }
    decode_fields = {"needed": min_decode_size, **_list_decoder_versions()}
    num_immediate = len(transforms)
    while num_immediate and isinstance(transforms[num_immediate - 1], BatchTransformConfig):
        num_immediate -= 1
    return ImageTransform(
        preprocessing.image_size,
        () if crops else tuple(_build_resize_steps(preprocessing)),
        tuple(_build_step(transform, preprocessing) for transform in transforms[:num_immediate]),
        tuple(
            build_batch_transform(transform)
            for transform in transforms[num_immediate:]
            if isinstance(transform, BatchTransformConfig)
        ),
        min_decode_size,
        _to_json(
            {
                **resize_fields,
                **decode_fields,
                "transforms": [transform.model_dump(mode="json") for transform in transforms],
            }
        ),
        _to_json(decode_fields if crops else {**resize_fields, **decode_fields}),
    )


def _compute_min_decode_size(preprocessing: Preprocessing, crop: schema.RandomResizedCrop | None) -> int | None:
    """The length of the shorter side that an image must keep so that no detail is missed when it is resized.

    The smallest part that is cut out is `share` of the area, and its shorter side is the root of share / ratio of the
    image's shorter side or more: it must not have to grow.
    """
    if preprocessing.interpolation == "nearest":  # it picks pixels of the file, not averages of them
        return None
    if crop is None:
        return _DECODE_MARGIN * preprocessing.resize_size
    max_aspect_ratio = max(crop.ratio[1], 1 / crop.ratio[0])
    return max(
        _DECODE_MARGIN * preprocessing.image_size,
        math.ceil(preprocessing.image_size * math.sqrt(max_aspect_ratio / crop.scale[0])),
    )


@cache
def _list_decoder_versions() -> dict[str, str | None]:
    """What decodes and changes images. Other versions of it may round another way."""
    decoders = {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif", "jpg_2000")}
    return {"pillow": PIL.__version__, "torchvision": torchvision.__version__, **decoders}


def _to_json(parts: dict[str, Any]) -> str:
    return json.dumps(parts, sort_keys=True)


def _build_resize_steps(preprocessing: Preprocessing) -> list[Step]:
    """The steps that bring an image to its size without chance."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize == "pad":
        return [_PadToSquare(preprocessing.image_size, interpolation)]
    if preprocessing.resize == "crop":
        return [
            _crop_extreme_aspect_ratio,
            v2.Resize([preprocessing.resize_size], interpolation),
            v2.CenterCrop(preprocessing.image_size),
        ]
    return [
        v2.Resize([preprocessing.resize_size, preprocessing.resize_size], interpolation),
        v2.CenterCrop(preprocessing.image_size),
    ]


class _ImmediateTransform:
    """A change that is made where it is drawn, for another step comes after it."""

    def __init__(self, transform: BatchTransform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform.apply(image, self.transform.make_params(image.size))


def _build_step(transform: schema.Transform, preprocessing: Preprocessing) -> Step:
    """A transform as a step from one RGB image to another."""
    step: Step
    match transform:
        case schema.RandomResizedCrop(scale=scale, ratio=ratio):
            step = v2.RandomResizedCrop(
                preprocessing.image_size, scale, ratio, v2.InterpolationMode(preprocessing.interpolation)
            )
        case schema.RandomRotation(degrees=degrees):
            step = v2.RandomRotation(degrees, v2.InterpolationMode.BILINEAR)
        case schema.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue):
            step = v2.ColorJitter(brightness, contrast, saturation, hue)
        case schema.RandAugment(num_ops=num_ops, magnitude=magnitude):
            step = v2.RandAugment(num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
        case _:
            step = _ImmediateTransform(build_batch_transform(transform))
    return step
