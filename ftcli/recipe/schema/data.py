"""The images: where they are and how they reach the network."""

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
"""What the name of a manifest ends in, in any case."""


def _augment_tag(value: Any) -> str:
    return "preset" if isinstance(value, str) else "list"


class Normalization(RecipeModel):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: Triple[float]
    """Of red, green and blue."""
    std: Triple[PositiveFloat]
    """Of red, green and blue."""


def _root_tag(value: Any) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


def _normalize_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "numbers"


class Data(RecipeModel):
    """The images: where they are, how they are split, and how they reach the network."""

    root: Annotated[
        Annotated[Text, Tag("one")]
        | Annotated[Texts, Field(min_length=1, json_schema_extra={"uniqueItems": True}), Tag("several")],
        Discriminator(_root_tag),
    ]
    """A folder with train/<class>/ and test/<class>/ (and val/<class>/), a folder of classes, or a manifest: a .csv,
    .tsv or .parquet file with the columns path and label, and split, weight and group where it likes; its paths are
    relative to its own folder. Or a list of such folders and manifests. Relative to the current folder."""
    group: Text | None = None
    """A regular expression that finds an image's group in its path below the class folder, or in its path as the
    manifest has it: what its one pair of brackets matches. All images of a group are in the same split. null: the
    manifest's column group, if there is one."""
    download: DatasetName | None = None
    """A known data set, made at root when root is missing."""
    val: OpenFraction = 0.1
    """The share of the training images that is drawn for validation, class by class; with groups, the share of the
    groups. Where there is a val/ folder, or a manifest's column split says val, that is used instead."""
    test: OpenFraction = 0.2
    """The share that is drawn for the test where root has no splits. Otherwise its own test images are used."""
    classes: Annotated[Texts, Field(json_schema_extra={"minItems": 2, "uniqueItems": True})] | None = None
    """The names of the classes in the order of the network's outputs. null: the folders' names, in natural order."""
    image_size: SideLength | None = None
    """Height and width of what the network sees, in pixels. null: what the weights were trained with."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """How an image becomes square where nothing is random: crop resizes its shorter side and cuts out the centre,
    squash resizes both sides, pad resizes its longer side and fills the rest with black. null: as the weights were
    evaluated, which is crop but for some of timm's and for what ftcli trained otherwise."""
    resize_size: SideLength | None = None
    """The side in pixels that an image is resized to before the centre is cut out; needs image_size, and does nothing
    with pad. null: in the weights' own proportion to image_size, but image_size itself where resize is squash."""
    normalize: Annotated[
        Annotated[Literal["pretrained", "dataset"], Tag("word")] | Annotated[Normalization, Tag("numbers")],
        Discriminator(_normalize_tag),
    ] = "pretrained"
    """Mean and standard deviation that pixels are normalised with: pretrained takes what the weights were trained with,
    dataset measures the training images, {mean, std} gives numbers."""
    augment: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[Transforms, Tag("list")], Discriminator(_augment_tag)
    ] = "standard"
    """What happens to a training image at random: a preset, or a list of transforms in order, each a name or a mapping
    with a name."""
    batch_size: PositiveInt = 32
    """Images in a step."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that load images; 0: the main process loads them, with a thread for each core. null: as many as there
    are cores, at most 8; but 0 where the CPU computes and images are small (1.5 megapixels), for they would take the
    cores from the network."""
    on_corrupt_image: Literal["error", "skip"] = "error"
    """What happens to a broken image: error stops the run, skip leaves it out, counts and names it."""

    @property
    def roots(self) -> tuple[str, ...]:
        """The root, or the several."""
        return (self.root,) if isinstance(self.root, str) else self.root

    @field_validator("root")
    @classmethod
    def _check_roots_unique(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if duplicates := [root for root in value if value.count(root) > 1] if isinstance(value, tuple) else []:
            raise ValueError(f"{duplicates[0]!r} stands twice")
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
            raise ValueError(f"is no regular expression ({error}); write one such as ^(m[0-9]+)_") from error
        if groups != 1:
            raise ValueError(f"has {groups} pairs of brackets that match; give it one, as in ^(m[0-9]+)_")
        return value

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if len(value) < 2:
                raise ValueError("a classifier needs at least 2 classes")
            duplicates = sorted({name for name in value if value.count(name) > 1})
            if duplicates:
                raise ValueError(f"{duplicates[0]!r} stands twice")
        return value

    @model_validator(mode="after")
    def _download_makes_a_folder(self) -> Data:
        if self.download is None or (isinstance(self.root, str) and not self.root.lower().endswith(MANIFEST_SUFFIXES)):
            return self
        raise ValueError(
            "download makes one folder, so root must name one folder, not a manifest or a list; change root or download"
        )

    @model_validator(mode="after")
    def _check_sizes(self) -> Data:
        if self.resize_size is not None:
            if self.resize == "pad":
                raise ValueError("resize_size does nothing with resize: pad; leave it out")
            if self.image_size is None:
                raise ValueError("resize_size needs image_size beside it")
            if self.resize_size < self.image_size:
                raise ValueError(f"resize_size {self.resize_size} is smaller than image_size {self.image_size}")
        return self
