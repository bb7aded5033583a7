"""The network: its backbone and its head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ftcli.recipe.schema.parts import Count, Part, Text, tuple_of_list


class Backbone(Part):
    """The network that the head is put on."""

    name: Text
    """A classifier of torchvision, such as resnet18, or of timm, such as timm/efficientnet_lite0."""
    weights: Text = "default"
    """default; none; a name such as IMAGENET1K_V1; a .pt, .pth or .safetensors file; or package:module/path, a file
    inside an installed Python package."""
    match: Literal["name", "position"] = "name"
    """How the tensors of a file find their places: by name, or in order after every shape was found equal."""


class Head(Part):
    """What takes the place of the backbone's last layer."""

    hidden: Annotated[tuple[Count, ...], BeforeValidator(tuple_of_list)] = ()
    """Units of each hidden layer; [] is a single linear layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What follows each hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of values dropped before the last layer in training."""
    init: Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] = "default"
    """How its weights begin. Biases begin at 0, except with default, which is PyTorch's own for both."""
