"""Data settings: location, splits, preprocessing and loading of the images."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ftcli.recipe.dataset_names import DatasetName
from ftcli.recipe.schema.augmentation import Preset, Transforms
from ftcli.recipe.schema.types import (
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    RecipeModel,
    SideLength,
    Text,
    Texts,
    Triple,
)

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
"""File name suffixes of manifests, in lower case."""


def _augment_tag(value: Any) -> str:
    return "preset" if isinstance(value, str) else "list"


class Normalization(RecipeModel):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: Triple[float]
    """Mean of red, green and blue."""
    std: Triple[PositiveFloat]
    """Standard deviation of red, green and blue."""


def _root_tag(value: Any) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


def _normalize_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "numbers"


class Data(RecipeModel):
    """The images: location, splits, preprocessing, augmentation and loading."""

    root: Annotated[
        Annotated[Text, Tag("one")]
        | Annotated[Texts, Field(min_length=1, json_schema_extra={"uniqueItems": True}), Tag("several")],
        Discriminator(_root_tag),
    ]
    """A folder with train/<class>/ and test/<class>/ (and optionally val/<class>/), a folder with one folder per class,
    or a manifest: a .csv, .tsv or .parquet file with the columns path and label, and optionally split, weight and
    group, whose paths are relative to the folder of the manifest. Or a list of such folders and manifests. Relative to
    the current folder."""
    group: Text | None = None
    """A regular expression whose capturing group is the group of an image. It is searched for in the path below the
    class folder, or in the path of the manifest. All images of a group are in the same split. null: the column group of
    the manifest, if it has one."""
    download: DatasetName | None = None
    """A known data set, which is downloaded to root if root does not exist."""
    val: OpenFraction = 0.1
    """Fraction of the training images of each class (with groups: of the groups) that is used for validation. A val/
    folder, or val in the column split of a manifest, is used instead if there is one."""
    test: OpenFraction = 0.2
    """Fraction of the images that is used for testing if root has no splits; otherwise its own test images are used."""
    classes: Annotated[Texts, Field(json_schema_extra={"minItems": 2, "uniqueItems": True})] | None = None
    """Names of the classes, in the order of the network's outputs. null: the folder names, in natural order."""
    image_size: SideLength | None = None
    """Height and width of the network's input in pixels. null: the size that the weights were trained with."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """Deterministic conversion of an image to a square: crop resizes the shorter side and crops the centre, squash
    resizes both sides, pad resizes the longer side and fills the rest with black. null: as the weights were evaluated,
    which is crop for all weights of torchvision and most of timm."""
    resize_size: SideLength | None = None
    """Size in pixels that an image is resized to before its centre is cropped; requires image_size, and cannot be
    combined with resize: pad. null: image_size in the proportion of the weights, or image_size with resize: squash."""
    normalize: Annotated[
        Annotated[Literal["pretrained", "dataset"], Tag("word")] | Annotated[Normalization, Tag("numbers")],
        Discriminator(_normalize_tag),
    ] = "pretrained"
    """Mean and standard deviation for normalizing pixels: pretrained uses those of the weights, dataset measures them
    on the training images, {mean, std} gives numbers."""
    augment: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[Transforms, Tag("list")], Discriminator(_augment_tag)
    ] = "standard"
    """Augmentation of training images: a preset, or a list of transforms in order, each a name or a mapping with a
    name."""
    batch_size: PositiveInt = 32
    """Number of images per step."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Number of processes that load images; 0 loads them in the main process, with one thread per core. null: one per
    core, at most 8, but 0 if the network runs on the CPU and the images are small (1.5 megapixels)."""
    on_corrupt_image: Literal["error", "skip"] = "error"
    """Handling of corrupt images: error stops the run; skip skips them and reports their names and number."""

    @property
    def roots(self) -> tuple[str, ...]:
        """Return all roots."""
        return (self.root,) if isinstance(self.root, str) else self.root

    @field_validator("root")
    @classmethod
    def _check_roots_unique(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if duplicates := [root for root in value if value.count(root) > 1] if isinstance(value, tuple) else []:
            raise ValueError(f"contains {duplicates[0]!r} twice; remove one of them")
        return value

    @field_validator("group")
    @classmethod
    def _check_group_pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                groups = re.compile(value).groups
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise ValueError(f"is not a regular expression ({error}); write one such as ^(m[0-9]+)_") from error
        if groups != 1:
            raise ValueError(f"has {groups} capturing groups; give it exactly one, as in ^(m[0-9]+)_")
        return value

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if len(value) < 2:
                raise ValueError("has fewer than 2 classes; give at least 2")
            duplicates = sorted({name for name in value if value.count(name) > 1})
            if duplicates:
                raise ValueError(f"contains {duplicates[0]!r} twice; remove one of them")
        return value

    @model_validator(mode="after")
    def _check_download(self) -> Data:
        if self.download is None or (isinstance(self.root, str) and not self.root.lower().endswith(MANIFEST_SUFFIXES)):
            return self
        raise ValueError(
            "download creates a folder, and root is not a single folder; give one folder as root, or remove download"
        )

    @model_validator(mode="after")
    def _check_sizes(self) -> Data:
        if self.resize_size is not None:
            if self.resize == "pad":
                raise ValueError("resize_size has no effect with resize: pad; remove it")
            if self.image_size is None:
                raise ValueError("resize_size requires image_size; add it")
            if self.resize_size < self.image_size:
                raise ValueError(f"resize_size {self.resize_size} is below image_size {self.image_size}; increase it")
        return self
