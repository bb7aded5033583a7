"""The recipe and its stages."""

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
    """Everything up to a module, in the order in which an image passes through."""

    through: Text
    """The last module that is frozen."""


class EarlyStopping(RecipeModel):
    """End a stage whose validation loss no longer falls."""

    patience: PositiveInt
    """Epochs without a new best after which the stage ends."""
    min_delta: NonNegativeFloat = 0.0
    """How much lower a validation loss must be to count as a new best."""


def _views_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "number"


class CacheSettings(RecipeModel):
    """Keep what the frozen part of the network gives for each image, so that it is computed once."""

    views: Annotated[
        Annotated[PositiveInt, Tag("number")] | Annotated[Literal["all"], Tag("word")], Discriminator(_views_tag)
    ] = 4
    """How many augmented views of each training image are kept; epoch e, counted from 0, uses view e mod views. all: as
    many as there are epochs, each its own, as without a cache. Without augmentation there is one."""


def _parse_cache_switch(value: Any) -> Any:
    """YAML 1.1 reads a bare off as false, and on as true."""
    if isinstance(value, (bool, str)):
        switches: dict[bool | str, Any] = {False: "off", "off": "off", True: CacheSettings(), "on": CacheSettings()}
        if value not in switches:
            raise ValueError("no setting of the cache; give off, or a mapping such as {views: 8}")
        return switches[value]
    return value


def _freeze_tag(value: Any) -> str:
    if isinstance(value, str):
        return "word"
    return "mapping" if isinstance(value, (dict, FreezeThrough)) else "list"


def _cache_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "mapping"


class Stage(RecipeModel):
    """One round of training, from the best checkpoint of the stage before it."""

    name: FileSafeName
    """What --stage and --set call it; its best weights go to stages/<name>.pt."""
    freeze: Annotated[
        Annotated[Literal["backbone", "none"], Tag("word")]
        | Annotated[Texts, Tag("list")]
        | Annotated[FreezeThrough, Tag("mapping")],
        Discriminator(_freeze_tag),
    ]
    """What must not move: backbone is all but the head, none is nothing, a list holds patterns (names or globs of
    modules and parameters; each takes in all below it), {through: module} is everything up to a module."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Whether BatchNorm layers that are not frozen take their statistics from each batch and update them, or keep
    and use the statistics they have."""
    epochs: PositiveInt
    """Passes over the training images; early_stopping may end them sooner."""
    optimizer: Optimizer
    """The rule by which weights are updated, with its settings."""
    schedule: Schedule = Constant(name="constant")
    """How the learning rate changes from step to step: a name alone, or a mapping with a name."""
    lr_mult: dict[Text, PositiveFloat] = Field(default_factory=dict)
    """Multiples of the learning rate by pattern, as in {head: 10}, with patterns as in freeze. The last that matches a
    parameter holds; 1 where none does."""
    clip_grad_norm: PositiveFloat | None = None
    """The largest norm of the gradient; a larger one is scaled down. null: no limit."""
    label_smoothing: Fraction = 0.0
    """The share of the target that is spread over all classes in training. The validation loss has none."""
    early_stopping: EarlyStopping | None = None
    """Ends the stage when its validation loss no longer falls. null: all epochs are trained."""
    cache: Annotated[
        Annotated[Literal["off"], Tag("word")] | Annotated[CacheSettings, Tag("mapping")],
        Discriminator(_cache_tag),
        BeforeValidator(_parse_cache_switch),
    ] = CacheSettings()
    """What is kept of images on the disk and used again, in this run and later ones: what the frozen part of the
    network gives for them, and their decoded pixels. off: everything is computed anew each time."""


class HeadFitStage(RecipeModel):
    """A stage whose head is solved for instead of trained: one linear layer has a best fit to what the frozen backbone
    gives for the training images, and it is computed at once."""

    name: FileSafeName
    """What --stage and --set call it; its best weights go to stages/<name>.pt."""
    freeze: Literal["backbone"]
    """All but the head must not move."""
    fit: Literal["logistic_regression"]
    """logistic_regression: multinomial logistic regression with an L2 penalty on the weights, solved to its optimum. How strong
    the penalty is, cross-validation within the training images chooses. Images are seen as in evaluation, without
    augmentation and dropout; the head must be a single linear layer."""


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
    """A recipe: which images, which network, and the stages of its training."""

    name: FileSafeName
    """What the run is called; its folder is runs/<name> unless --out gives another."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What everything random follows from: splits, new weights, the order of images, augmentation, dropout."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the forward pass: auto is bfloat16 where the hardware computes in it by itself and a tried
    step is at least 1.1 times as fast as in float32, which it is elsewhere."""
    data: Data
    """The images."""
    backbone: Backbone
    """The network."""
    head: Head = Head()
    """What takes the place of the network's last layer."""
    compile: bool = False
    """Whether the code of each training step is compiled for this machine first (torch.compile), which takes seconds to
    minutes and needs a C++ compiler. What it cost and gained is told, and counted as compiling where the
    time of a stage is told."""
    stages: Annotated[tuple[AnyStage, ...], BeforeValidator(list_to_tuple), Field(min_length=1)]
    """The rounds of training, in order; each begins from the best weights of the one before. One with a solver is
    solved instead of trained."""

    @field_validator("stages")
    @classmethod
    def _check_stage_names_unique(cls, value: tuple[Stage | HeadFitStage, ...]) -> tuple[Stage | HeadFitStage, ...]:
        names = [stage.name for stage in value]
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise ValueError(f"two stages are named {duplicates[0]!r}")
        return value
