"""Preprocessing and augmentation of images: resizing, random transforms, normalization."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

import PIL
import torch
import torchvision
from PIL import Image, features
from torch import Tensor
from torchvision.transforms import v2

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
"""The transforms of each preset. standard is the augmentation of Szegedy et al., arXiv 1409.4842, with which most
ImageNet weights were trained."""

_DECODE_MARGIN = 2
"""The minimum ratio of the decoded size to the resized one. A JPEG decoded at 1/k of its size has the means of blocks
of k by k pixels. Resizing them by 2 or more gives pixels that differ by less than 1 of 255 on average from those of the
full-size image; without a margin the difference doubles, and some predicted classes change."""

BatchTransformConfig = schema.RandomHorizontalFlip | schema.RandomVerticalFlip | schema.RandomErasing
"""The transforms of a recipe whose random parameters need no pixels and that a device can apply to whole batches."""

_TransformKind = Literal["horizontal_flip", "vertical_flip", "erase"]


@dataclass(frozen=True)
class BatchTransformParams:
    """The parameters of one batch transform for n images, not applied yet.

    int64 (n, 1), 1 for flipped images, or (n, 4): top, left, height and width of the erased rectangle.
    """

    kind: _TransformKind
    params: Tensor

    def to(self, device: torch.device) -> BatchTransformParams:
        """Copy to a device, asynchronously from pinned memory."""
        return BatchTransformParams(self.kind, self.params.to(device, non_blocking=True))

    def pin_memory(self) -> BatchTransformParams:
        """Copy to pinned memory."""
        return BatchTransformParams(self.kind, self.params.pin_memory())


@dataclass(frozen=True)
class _Flip:
    """A flip with probability p.

    `make_params` uses torch's global CPU generator exactly as torchvision's transform does. `apply` gives an RGB image
    the same pixels as `apply_batch_transforms` gives a batch.
    """

    p: float
    kind: ClassVar[_TransformKind]
    _method: ClassVar[Image.Transpose]

    def make_params(self, _size: tuple[int, int]) -> tuple[int, ...]:
        return (int(not bool(torch.rand(1) >= self.p)),)

    def apply(self, image: Image.Image, params: tuple[int, ...]) -> Image.Image:
        return image.transpose(self._method) if params[0] else image


class HorizontalFlip(_Flip):
    """A left-right flip."""

    kind = "horizontal_flip"
    _method = Image.Transpose.FLIP_LEFT_RIGHT


class VerticalFlip(_Flip):
    """A top-bottom flip."""

    kind = "vertical_flip"
    _method = Image.Transpose.FLIP_TOP_BOTTOM


class Erase:
    """A black rectangle, of a fraction of the area in `scale`, with probability p; see _Flip."""

    kind: _TransformKind = "erase"

    def __init__(self, p: float, scale: tuple[float, float]) -> None:
        self._random_erasing = v2.RandomErasing(p, scale)

    def make_params(self, size: tuple[int, int]) -> tuple[int, ...]:
        if torch.rand(1) >= self._random_erasing.p:
            return 0, 0, 0, 0
        params: dict[str, Any] = self._random_erasing.make_params([torch.empty((3, size[1], size[0]), device="meta")])
        # torchvision returns no value after ten rectangles that do not fit.
        return (0, 0, 0, 0) if params["v"] is None else (params["i"], params["j"], params["h"], params["w"])

    def apply(self, image: Image.Image, params: tuple[int, ...]) -> Image.Image:
        top, left, height, width = params
        if not height or not width:
            return image
        erased = image.copy()
        erased.paste((0, 0, 0), (left, top, left + width, top + height))
        return erased


DeferrableTransform = HorizontalFlip | VerticalFlip | Erase


def build_batch_transform(transform: BatchTransformConfig) -> DeferrableTransform:
    """Build a batch transform of a recipe."""
    match transform:
        case schema.RandomHorizontalFlip(p=p):
            return HorizontalFlip(p)
        case schema.RandomVerticalFlip(p=p):
            return VerticalFlip(p)
        case schema.RandomErasing(p=p, scale=scale):
            return Erase(p, scale)


def apply_batch_transforms(images: Tensor, transform_params: Sequence[BatchTransformParams]) -> Tensor:
    """Apply batch transforms in order to uint8 images (n, 3, h, w) on the same device. The input is not modified."""
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    for transform in transform_params:
        params = transform.params.view(len(images), -1, 1, 1, 1)
        if transform.kind == "erase":
            top, left, height, width = params.unbind(1)
            is_erased = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
            images = images.masked_fill(is_erased, 0)
        else:
            dim = 3 if transform.kind == "horizontal_flip" else 2
            images = torch.where(params[:, 0] > 0, images.flip(dim), images)
    return images


@dataclass(frozen=True, eq=False)
class ImageTransform:
    """Preprocessing of an image to uint8 (3, size, size), RGB.

    The deterministic steps come first. The random steps and then the batch transforms follow; both use torch's global
    CPU generator alone. Batch transforms are applied here, or with `is_deferred` left to `apply_batch_transforms`.
    `min_decode_size` is the minimum length of the shorter side for decoding a file; None decodes the full size.

    `fingerprint` determines every pixel, given the image file and the state of the generator;
    `deterministic_fingerprint` determines the output of the deterministic steps.
    """

    size: int
    deterministic: tuple[Step, ...]
    random: tuple[Step, ...]
    batch_transforms: tuple[DeferrableTransform, ...]
    min_decode_size: int | None
    fingerprint: str
    deterministic_fingerprint: str
    is_deferred: bool = False

    @property
    def is_random(self) -> bool:
        """True if the output depends on the random generator."""
        return bool(self.random or self.batch_transforms)

    def __call__(self, image: Image.Image) -> Tensor:
        """Apply all steps to an RGB or grey image."""
        augmented, _ = replace(self, is_deferred=False).apply_random(self.apply_deterministic(image))
        pixels: Tensor = v2.functional.pil_to_tensor(augmented)
        return pixels

    def apply_deterministic(self, image: Image.Image) -> Image.Image:
        """Apply the deterministic steps to an RGB or grey image. Return an RGB image."""
        # Grey is resized as one channel: three equal channels would give the same result in three times the time.
        for step in self.deterministic:
            image = step(image)
        return image if image.mode == "RGB" else image.convert("RGB")

    def apply_random(self, image: Image.Image) -> tuple[Image.Image, tuple[tuple[int, ...], ...]]:
        """Apply the random steps. Return the image and the parameters of each deferred batch transform."""
        for step in self.random:
            image = step(image)
        params_per_transform = tuple(transform.make_params(image.size) for transform in self.batch_transforms)
        if self.is_deferred:
            return image, params_per_transform
        for transform, params in zip(self.batch_transforms, params_per_transform, strict=True):
            image = transform.apply(image, params)
        return image, ()

    def defer_to_device(self) -> ImageTransform:
        """Return the transform with its batch transforms left to `apply_batch_transforms`."""
        return replace(self, is_deferred=True)


def build_eval_transform(preprocessing: Preprocessing) -> ImageTransform:
    """Build the deterministic transform for evaluation. Resizing is antialiased unless the interpolation is nearest."""
    return _build_transform(preprocessing, ())


def build_train_transform(
    preprocessing: Preprocessing, augment: schema.Preset | tuple[schema.Transform, ...]
) -> ImageTransform:
    """Build the transform for training: the transforms of a preset or list, in order.

    Without a random_resized_crop the image is resized first, as for evaluation.
    """
    return _build_transform(preprocessing, PRESETS[augment] if isinstance(augment, str) else augment)


class Normalizer:
    """Normalization of uint8 images: scaled to [0, 1], minus the mean, divided by the std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 (n, 3, h, w) on the normalizer's device to float32 of the same shape and memory format."""
        mean, std = self._mean, self._std
        if images.is_contiguous(memory_format=torch.channels_last):
            # Repeated for a row of pixels, the values are applied in a quarter of the time.
            mean, std = (_repeat_per_pixel(channel_values, images.shape[3]) for channel_values in (mean, std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def _repeat_per_pixel(channel_values: Tensor, width: int) -> Tensor:
    """Repeat channel values (1, 3, 1, 1) to (1, 3, 1, width), channels last."""
    return channel_values.expand(1, 3, 1, width).contiguous(memory_format=torch.channels_last)


class _PadToSquare:
    """Resizing of the longer side to `size`, with the image centred on black."""

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
    """Crop the middle of an image that is more than eight times as long as wide.

    The centre crop that follows lies well within it, while resizing the full image could exhaust the memory.
    """
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
    """Return the minimum length of the shorter side when decoding, so that resizing loses no detail.

    The smallest random crop has scale[0] of the area, and its shorter side is at least sqrt(scale[0] / ratio) of the
    image's shorter side. It must not be enlarged.
    """
    if preprocessing.interpolation == "nearest":  # it selects pixels of the file instead of averaging
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
    """Return the versions of the libraries that decode and transform images: others may round differently."""
    decoders = {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif", "jpg_2000")}
    return {"pillow": PIL.__version__, "torchvision": torchvision.__version__, **decoders}


def _to_json(parts: dict[str, Any]) -> str:
    return json.dumps(parts, sort_keys=True)


def _build_resize_steps(preprocessing: Preprocessing) -> list[Step]:
    """Return the steps that resize an image for evaluation."""
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
    """A batch transform applied at once, since a step that needs the pixels follows."""

    def __init__(self, transform: DeferrableTransform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform.apply(image, self.transform.make_params(image.size))


def _build_step(transform: schema.Transform, preprocessing: Preprocessing) -> Step:
    """Build a transform of a recipe as a function of an RGB image."""
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
