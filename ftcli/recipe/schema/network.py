"""Backbone and head of the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ftcli.recipe.schema.types import Fraction, PositiveInt, RecipeModel, Text, list_to_tuple

Sha256 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$"), AfterValidator(str.lower)]


class Backbone(RecipeModel):
    """The network whose last layer the head replaces."""

    name: Text
    """A torchvision classifier, such as resnet18, or a timm classifier, such as timm/efficientnet_lite0."""
    weights: Text = "default"
    """default, none, a name such as IMAGENET1K_V1, a .pt, .pth or .safetensors file (a checkpoint of ftcli included),
    package:module/path for a file in an installed Python package, or an http:// or https:// URL, which is downloaded
    once."""
    match: Literal["name", "position"] = "name"
    """Assignment of a file's tensors to the network: by name, or by position if all shapes are equal."""
    sha256: Sha256 | None = None
    """SHA-256 of the weights file, checked at every use; required for a URL. null: only the digest in the names of
    published files is checked."""

    @model_validator(mode="after")
    def _check_sha256(self) -> Backbone:
        if self.sha256 is None and is_url(self.weights):
            raise ValueError(
                "weights from a URL require sha256; give the SHA-256 that the publisher states, or that "
                "`sha256sum FILE` prints for a copy that you trust"
            )
        if self.sha256 is not None and self.weights == "none":
            raise ValueError("sha256 has no effect with weights: none; remove it")
        return self


def is_url(weights: str) -> bool:
    """Return whether `weights` is a URL."""
    return weights.lower().startswith(("http://", "https://"))


class Head(RecipeModel):
    """The layers that replace the last layer of the backbone."""

    hidden: Annotated[tuple[PositiveInt, ...], BeforeValidator(list_to_tuple)] = ()
    """Number of units of each hidden layer; [] is a single linear layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation after each hidden layer."""
    dropout: Fraction = 0.0
    """Dropout probability before the last layer."""
    init: Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] = "default"
    """Initialization of the weights. Biases are set to 0, except with default, which is PyTorch's own for both."""
