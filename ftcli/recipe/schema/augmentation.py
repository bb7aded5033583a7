"""Augmentations of training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from ftcli.recipe.schema.types import (
    NonNegativeFloat,
    Pair,
    PositiveFloat,
    PositiveInt,
    Probability,
    RecipeModel,
    allow_bare_name,
    list_to_tuple,
)


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("is in the wrong order; give the smaller number first")
    return value


AreaFraction = Annotated[float, Field(gt=0, le=1)]


class RandomResizedCrop(RecipeModel):
    """Crop a random part of the image and resize it to the image size."""

    name: Literal["random_resized_crop"]
    scale: Pair[AreaFraction] = (0.08, 1.0)
    """Minimum and maximum area of the crop, as a fraction of the image."""
    ratio: Pair[PositiveFloat] = (0.75, 4 / 3)
    """Minimum and maximum aspect ratio of the crop (width / height)."""

    _check_order = field_validator("scale", "ratio")(_check_order)


class RandomHorizontalFlip(RecipeModel):
    """Mirror the image left to right."""

    name: Literal["random_horizontal_flip"]
    p: Probability = 0.5
    """Probability of the flip."""


class RandomVerticalFlip(RecipeModel):
    """Mirror the image top to bottom."""

    name: Literal["random_vertical_flip"]
    p: Probability = 0.5
    """Probability of the flip."""


class RandomRotation(RecipeModel):
    """Rotate the image about its centre; the corners are filled with black."""

    name: Literal["random_rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """Maximum rotation in either direction, in degrees."""


class ColorJitter(RecipeModel):
    """Change brightness, contrast, saturation and hue at random."""

    name: Literal["color_jitter"]
    brightness: NonNegativeFloat = 0.2
    """x, where the brightness is multiplied by a factor of 1 - x to 1 + x."""
    contrast: NonNegativeFloat = 0.2
    """x, where the contrast is multiplied by a factor of 1 - x to 1 + x."""
    saturation: NonNegativeFloat = 0.2
    """x, where the saturation is multiplied by a factor of 1 - x to 1 + x."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """x, where the hue is shifted by -x to x of the colour circle."""


class RandAugment(RecipeModel):
    """Apply a few random operations of the same strength (Cubuk et al., arXiv 1909.13719)."""

    name: Literal["rand_augment"]
    num_ops: PositiveInt = 2
    """Number of operations per image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of the operations, 0 to 30."""


class RandomErasing(RecipeModel):
    """Fill a random rectangle with black (Zhong et al., arXiv 1708.04896)."""

    name: Literal["random_erasing"]
    p: Probability = 0.25
    """Probability of erasing."""
    scale: Pair[AreaFraction] = (0.02, 0.33)
    """Minimum and maximum area of the rectangle, as a fraction of the image."""

    _check_order = field_validator("scale")(_check_order)


Transform = Annotated[
    Annotated[
        RandomResizedCrop
        | RandomHorizontalFlip
        | RandomVerticalFlip
        | RandomRotation
        | ColorJitter
        | RandAugment
        | RandomErasing,
        Field(discriminator="name"),
    ],
    BeforeValidator(allow_bare_name),
]
Transforms = Annotated[tuple[Transform, ...], BeforeValidator(list_to_tuple)]
Preset = Literal["none", "flips", "light", "standard", "strong"]
