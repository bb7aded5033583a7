"""The network: its backbone and its head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ftcli.recipe.schema.types import Fraction, PositiveInt, RecipeModel, Text, list_to_tuple

Sha256 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$"), AfterValidator(str.lower)]


class Backbone(RecipeModel):
    """The network that the head is put on."""

    name: Text
    """A classifier of torchvision, such as resnet18, or of timm, such as timm/efficientnet_lite0."""
    weights: Text = "default"
    """default; none; a name such as IMAGENET1K_V1; a .pt, .pth or .safetensors file, a checkpoint of ftcli among them;
    package:module/path, a file inside an installed Python package; or the http:// or https:// address of a file, which
    is downloaded once."""
    match: Literal["name", "position"] = "name"
    """How the tensors of a file find their places: by name, or in order after every shape was found equal."""
    sha256: Sha256 | None = None
    """The SHA-256 of the weights' file, which is checked on every use; an address needs it. null: not checked, beyond
    what published files have in their names."""

    @model_validator(mode="after")
    def _check_sha256(self) -> Backbone:
        if self.sha256 is None and is_url(self.weights):
            raise ValueError(
                "weights from an address need sha256 beside them; give the SHA-256 that their publisher tells, or that "
                "`sha256sum FILE` tells of a copy that you trust"
            )
        if self.sha256 is not None and self.weights == "none":
            raise ValueError("sha256 does nothing with weights: none; leave it out")
        return self


def is_url(weights: str) -> bool:
    """Whether `weights` is the address of a file, and no file on this machine."""
    return weights.lower().startswith(("http://", "https://"))


class Head(RecipeModel):
    """What takes the place of the backbone's last layer."""

    hidden: Annotated[tuple[PositiveInt, ...], BeforeValidator(list_to_tuple)] = ()
    """Units of each hidden layer; [] is a single linear layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What follows each hidden layer."""
    dropout: Fraction = 0.0
    """The share of values dropped before the last layer in training."""
    init: Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] = "default"
    """How its weights begin. Biases begin at 0, except with default, which is PyTorch's own for both."""
