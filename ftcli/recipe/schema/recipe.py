"""Recipe and stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from ftcli.recipe.schema.data import Data
from ftcli.recipe.schema.network import Backbone, Head
from ftcli.recipe.schema.optimization import Constant, Optimizer, Schedule
from ftcli.recipe.schema.types import (
    FileSafeName,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    RecipeModel,
    Text,
    Texts,
    list_to_tuple,
)


class FreezeThrough(RecipeModel):
    """Freeze everything up to a module, in forward order."""

    through: Text
    """Last module that is frozen."""


class EarlyStopping(RecipeModel):
    """End a stage early when the validation loss stops improving."""

    patience: PositiveInt
    """Number of epochs without improvement after which the stage ends."""
    min_delta: NonNegativeFloat = 0.0
    """Minimum decrease of the validation loss that counts as an improvement."""


def _views_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "number"


class CacheSettings(RecipeModel):
    """Cache the features of the frozen backbone, so that they are computed once per image."""

    views: Annotated[
        Annotated[PositiveInt, Tag("number")] | Annotated[Literal["all"], Tag("word")], Discriminator(_views_tag)
    ] = 4
    """Number of augmented views that are cached per training image; epoch e, counted from 0, uses view e mod views.
    all: one view per epoch, as without a cache. Without augmentation there is one view."""


def _parse_cache_switch(value: Any) -> Any:
    """Convert on and off, or the booleans that they are in YAML 1.1, to a setting of the cache."""
    if isinstance(value, (bool, str)):
        switches: dict[bool | str, Any] = {False: "off", "off": "off", True: CacheSettings(), "on": CacheSettings()}
        if value not in switches:
            raise ValueError("is not a cache setting; give off, or a mapping such as {views: 8}")
        return switches[value]
    return value


def _freeze_tag(value: Any) -> str:
    if isinstance(value, str):
        return "word"
    return "mapping" if isinstance(value, (dict, FreezeThrough)) else "list"


def _cache_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "mapping"


class Stage(RecipeModel):
    """A stage of training, which starts from the best checkpoint of the previous stage."""

    name: FileSafeName
    """Name of the stage, used by --stage, --set and stages/<name>.pt, its best checkpoint."""
    freeze: Annotated[
        Annotated[Literal["backbone", "none"], Tag("word")]
        | Annotated[Texts, Tag("list")]
        | Annotated[FreezeThrough, Tag("mapping")],
        Discriminator(_freeze_tag),
    ]
    """Frozen parameters: backbone freezes all but the head, none freezes nothing, a list of patterns (names or globs of
    modules and parameters) freezes what they match and everything below it, {through: module} freezes everything up to
    a module."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Mode of BatchNorm layers that are not frozen: train normalizes with the statistics of each batch and updates the
    running statistics, frozen uses the running statistics and does not change them."""
    epochs: PositiveInt
    """Number of passes over the training images; early_stopping can end the stage sooner."""
    optimizer: Optimizer
    """Optimizer and its settings."""
    schedule: Schedule = Constant(name="constant")
    """Learning rate schedule: a name, or a mapping with a name."""
    lr_mult: dict[Text, PositiveFloat] = Field(default_factory=dict)
    """Multipliers of the learning rate by pattern, as in {head: 10}, with patterns as in freeze. The last pattern that
    matches a parameter applies; 1 without a match."""
    clip_grad_norm: PositiveFloat | None = None
    """Maximum norm of the gradient, to which larger gradients are scaled down. null: no limit."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the training loss; the validation loss has none."""
    early_stopping: EarlyStopping | None = None
    """Early stopping on the validation loss. null: all epochs are trained."""
    cache: Annotated[
        Annotated[Literal["off"], Tag("word")] | Annotated[CacheSettings, Tag("mapping")],
        Discriminator(_cache_tag),
        BeforeValidator(_parse_cache_switch),
    ] = CacheSettings()
    """Cache of the features of the frozen backbone and of decoded pixels on disk, shared by all runs. off: both are
    computed again in each epoch."""


class HeadFitStage(RecipeModel):
    """A stage that fits a linear head to the features of the frozen backbone instead of training it."""

    name: FileSafeName
    """Name of the stage, used by --stage, --set and stages/<name>.pt, its best checkpoint."""
    freeze: Literal["backbone"]
    """Freeze all but the head."""
    fit: Literal["logistic_regression"]
    """Method of the fit. logistic_regression: multinomial logistic regression with an L2 penalty, solved to its
    optimum; the strength of the penalty is chosen by cross-validation on the training images. Images are preprocessed
    as in evaluation, without augmentation and dropout. The head must be a single linear layer."""


def _stage_tag(value: Any) -> str:
    is_head_fit = isinstance(value, HeadFitStage) or (
        isinstance(value, dict) and not {"fit", "solver"}.isdisjoint(value)
    )
    return HeadFitStage.__name__ if is_head_fit else Stage.__name__


AnyStage = Annotated[
    Annotated[Stage, Tag(Stage.__name__)] | Annotated[HeadFitStage, Tag(HeadFitStage.__name__)],
    Discriminator(_stage_tag),
]


class Recipe(RecipeModel):
    """A recipe: images, network and stages of training."""

    name: FileSafeName
    """Name of the run, whose directory is runs/<name> unless --out is given."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all randomness: splits, initial weights, order of the images, augmentation, dropout."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass: auto uses bfloat16 if the hardware supports it and a measured step is at least
    1.1 times as fast as in float32, and float32 otherwise."""
    data: Data
    """Settings of the images."""
    backbone: Backbone
    """Settings of the network."""
    head: Head = Head()
    """Layers that replace the last layer of the network."""
    compile: bool = False
    """Compile the training step with torch.compile, which takes seconds to minutes and requires a C++ compiler. The
    time for compiling and the speedup are reported."""
    stages: Annotated[tuple[AnyStage, ...], BeforeValidator(list_to_tuple), Field(min_length=1)]
    """Stages of training, in order; each starts from the best checkpoint of the previous one. The head of a stage with
    the key fit is fitted instead of trained."""

    @field_validator("stages")
    @classmethod
    def _check_stage_names_unique(cls, value: tuple[Stage | HeadFitStage, ...]) -> tuple[Stage | HeadFitStage, ...]:
        names = [stage.name for stage in value]
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise ValueError(f"two stages are named {duplicates[0]!r}; rename one of them")
        return value
