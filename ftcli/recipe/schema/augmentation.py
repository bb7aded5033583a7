"""Random changes of training images."""

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
        raise ValueError("give the smaller number first")
    return value


AreaFraction = Annotated[float, Field(gt=0, le=1)]


class RandomResizedCrop(RecipeModel):
    """A random part of the image, of random area and shape, resized to the network's input."""

    name: Literal["random_resized_crop"]
    scale: Pair[AreaFraction] = (0.08, 1.0)
    """The share of the image's area that is kept, from and to."""
    ratio: Pair[PositiveFloat] = (0.75, 4 / 3)
    """Width over height of the part, from and to."""

    _check_order = field_validator("scale", "ratio")(_check_order)


class RandomHorizontalFlip(RecipeModel):
    """Left and right change places."""

    name: Literal["random_horizontal_flip"]
    p: Probability = 0.5
    """How probable the flip is."""


class RandomVerticalFlip(RecipeModel):
    """Top and bottom change places."""

    name: Literal["random_vertical_flip"]
    p: Probability = 0.5
    """How probable the flip is."""


class RandomRotation(RecipeModel):
    """A turn about the centre; what comes in at the corners is black."""

    name: Literal["random_rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """The largest turn to either side, in degrees."""


class ColorJitter(RecipeModel):
    """Random brightness, contrast, saturation and hue."""

    name: Literal["color_jitter"]
    brightness: NonNegativeFloat = 0.2
    """x, where brightness is multiplied by a factor from 1 - x to 1 + x."""
    contrast: NonNegativeFloat = 0.2
    """x, where contrast is multiplied by a factor from 1 - x to 1 + x."""
    saturation: NonNegativeFloat = 0.2
    """x, where saturation is multiplied by a factor from 1 - x to 1 + x."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """x, where hue is shifted by a part of the colour circle from -x to x."""


class RandAugment(RecipeModel):
    """A few random operations of one strength (Cubuk et al., arXiv 1909.13719)."""

    name: Literal["rand_augment"]
    num_ops: PositiveInt = 2
    """How many operations an image goes through."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong they are, 0 to 30."""


class RandomErasing(RecipeModel):
    """A random rectangle is blackened (Zhong et al., arXiv 1708.04896)."""

    name: Literal["random_erasing"]
    p: Probability = 0.25
    """How probable the rectangle is."""
    scale: Pair[AreaFraction] = (0.02, 0.33)
    """The share of the area that it takes, from and to."""

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
