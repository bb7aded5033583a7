"""The images: where they are and how they reach the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ftcli.recipe.schema.augmentation import Preset, Transforms
from ftcli.recipe.schema.parts import Count, Part, Share, Side, Text, Texts, Triple


def _kind_of_augment(value: Any) -> str:
    return "preset" if isinstance(value, str) else "list"


class Normalization(Part):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: Triple
    """Of red, green and blue."""
    std: Triple
    """Of red, green and blue."""

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("each must be above 0")
        return value


def _kind_of_normalize(value: Any) -> str:
    return "word" if isinstance(value, str) else "numbers"


class Data(Part):
    """The images: where they are, how they are split, and how they reach the network."""

    root: Text
    """A folder with train/<class>/ and test/<class>/ (and val/<class>/), or a folder of classes. Relative to the
    current folder."""
    fetch: Literal["solar-cells"] | None = None
    """A known data set, made at root when root is missing."""
    val: Share = 0.1
    """The share of the training images that is drawn for validation, class by class. A val/ folder is used instead
    where there is one."""
    test: Share = 0.2
    """The share that is drawn for the test where root is a folder of classes. Otherwise the test/ folder is used."""
    classes: Texts | None = None
    """The names of the classes in the order of the network's outputs. null: the folders' names, in natural order."""
    image_size: Side | None = None
    """Height and width of what the network sees, in pixels. null: what the weights were trained with."""
    resize: Literal["shorter", "squash", "pad"] = "shorter"
    """How an image becomes square without augmentation: its shorter side is resized and the centre cut out, both
    sides are resized, or its longer side is resized and the rest is filled with black."""
    resize_size: Side | None = None
    """The side in pixels that an image is resized to before the centre is cut out. null: in the weights' own
    proportion to image_size with shorter, image_size itself with squash."""
    normalize: Annotated[
        Annotated[Literal["weights", "data"], Tag("word")] | Annotated[Normalization, Tag("numbers")],
        Discriminator(_kind_of_normalize),
    ] = "weights"
    """Mean and std that pixels are normalised with: those of the weights, those of the training images, or numbers."""
    augment: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[Transforms, Tag("list")], Discriminator(_kind_of_augment)
    ] = "standard"
    """What happens to a training image at random: a preset, or a list of transforms by name."""
    batch_size: Count = 32
    """Images in a step."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that load images. null: as many as there are cores, at most 8; 0: the main process loads them."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What a broken image does: stop the run, or be left out and counted."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if len(value) < 2:
                raise ValueError("a classifier needs at least 2 classes")
            twice = sorted({name for name in value if value.count(name) > 1})
            if twice:
                raise ValueError(f"{twice[0]!r} stands twice")
        return value

    @model_validator(mode="after")
    def _sizes_agree(self) -> Data:
        if self.resize_size is not None:
            if self.resize == "pad":
                raise ValueError("resize_size does nothing with resize: pad; leave it out")
            if self.image_size is None:
                raise ValueError("resize_size needs image_size beside it")
            if self.resize_size < self.image_size:
                raise ValueError(f"resize_size {self.resize_size} is smaller than image_size {self.image_size}")
        return self
