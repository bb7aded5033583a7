"""Optimizers and learning rate schedules."""

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
    """Learning rate, before schedule and lr_mult."""
    momentum: Fraction = 0.9
    """Momentum factor; 0 disables momentum."""
    nesterov: bool = False
    """Use Nesterov momentum; requires a momentum above 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay (L2 penalty)."""
    decay_norm_and_bias: bool = True
    """Apply weight decay to normalization layers and biases too."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov requires a momentum above 0; set momentum")
        return self


class _AdamBase(RecipeModel):
    lr: PositiveFloat
    """Learning rate, before schedule and lr_mult."""
    betas: Pair[Fraction] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and its square."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay: an L2 penalty with adam, decoupled from the gradient with adamw."""
    decay_norm_and_bias: bool = True
    """Apply weight decay to normalization layers and biases too."""


class Adam(_AdamBase):
    """Adam (Kingma and Ba, arXiv 1412.6980)."""

    name: Literal["adam"]


class AdamW(_AdamBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    name: Literal["adamw"]


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Constant(RecipeModel):
    """A constant learning rate."""

    name: Literal["constant"]
    warmup: Fraction = 0.0
    """Fraction of the stage's steps in which the learning rate rises from 0."""


class StepDecay(RecipeModel):
    """Multiply the learning rate by gamma every step_size epochs."""

    name: Literal["step"]
    step_size: PositiveInt
    """Number of epochs between two multiplications."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each multiplication."""
    warmup: Fraction = 0.0
    """Fraction of the stage's steps in which the learning rate rises from 0."""


class Cosine(RecipeModel):
    """Decrease the learning rate to 0 along a half cosine (Loshchilov and Hutter, arXiv 1608.03983)."""

    name: Literal["cosine"]
    warmup: Fraction = 0.0
    """Fraction of the stage's steps in which the learning rate rises from 0."""


class OneCycle(RecipeModel):
    """Increase the learning rate from lr / 25 to lr, then decrease it to lr / 250,000, both along a half cosine
    (Smith and Topin, arXiv 1708.07120)."""

    name: Literal["one_cycle"]
    warmup: OpenFraction = 0.3
    """Fraction of the stage's steps in which the learning rate rises."""


Schedule = Annotated[
    Annotated[Constant | StepDecay | Cosine | OneCycle, Field(discriminator="name")], BeforeValidator(allow_bare_name)
]
