"""How parameters move: optimizers and the learning rate over time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ftcli.recipe.schema.types import (
    Fraction,
    NonNegativeFloat,
    OpenFraction,
    Pair,
    PositiveFloat,
    PositiveInt,
    RecipeModel,
    allow_bare_name,
)


class Sgd(RecipeModel):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: PositiveFloat
    """The learning rate, which schedule and lr_mult change."""
    momentum: Fraction = 0.9
    """How much of the last step's direction is kept."""
    nesterov: bool = False
    """Whether the gradient counts as if taken one step ahead along the momentum, which must be above 0."""
    weight_decay: NonNegativeFloat = 0.0
    """How strongly weights are drawn to 0, as an L2 penalty."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also acts on normalisation layers and biases."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _AdamBase(RecipeModel):
    lr: PositiveFloat
    """The learning rate, which schedule and lr_mult change."""
    betas: Pair[Fraction] = (0.9, 0.999)
    """How much of the running means of the gradient and of its square is kept at each step."""
    weight_decay: NonNegativeFloat = 0.0
    """How strongly weights are drawn to 0: an L2 penalty with adam, apart from the gradient with adamw."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also acts on normalisation layers and biases."""


class Adam(_AdamBase):
    """Adam (Kingma and Ba, arXiv 1412.6980)."""

    name: Literal["adam"]


class AdamW(_AdamBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    name: Literal["adamw"]


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Constant(RecipeModel):
    """The learning rate stays."""

    name: Literal["constant"]
    warmup: Fraction = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class StepDecay(RecipeModel):
    """The learning rate is multiplied by gamma every few epochs."""

    name: Literal["step"]
    step_size: PositiveInt
    """Epochs between two multiplications."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What the rate is multiplied by."""
    warmup: Fraction = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class Cosine(RecipeModel):
    """The learning rate falls to 0 along half a cosine (Loshchilov and Hutter, arXiv 1608.03983)."""

    name: Literal["cosine"]
    warmup: Fraction = 0.0
    """The share of the stage's steps over which the rate rises from 0."""


class OneCycle(RecipeModel):
    """The learning rate rises from lr / 25 to lr and falls to lr / 250,000, both along half a cosine
    (Smith and Topin, arXiv 1708.07120)."""

    name: Literal["one_cycle"]
    warmup: OpenFraction = 0.3
    """The share of the stage's steps over which the rate rises."""


Schedule = Annotated[
    Annotated[Constant | StepDecay | Cosine | OneCycle, Field(discriminator="name")], BeforeValidator(allow_bare_name)
]
