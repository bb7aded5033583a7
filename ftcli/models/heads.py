"""Build a head and replace a network's own by it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from ftcli.recipe.schema import Head, Recipe
from ftcli.runtime import derive_seed

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
_INITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
}


def build_head(original: nn.Module, head: Head, num_classes: int) -> nn.Module:
    """Return a head for `num_classes` classes with the input width of `original`, a Linear or 1 x 1 Conv2d.

    Its layers have the original's type, device and dtype, and biases. Without hidden layers and dropout it is a single
    layer, so that its tensors have the original's names; otherwise a Sequential of hidden layers with activations,
    the dropout and the last layer. Weights are initialized by `head.init` (Xavier: Glorot and Bengio, AISTATS 2010;
    Kaiming: He et al., arXiv 1502.01852, fan-in) and biases with 0; `default` is PyTorch's default for both.
    Layers on the meta device are not initialized.
    """
    widths = [_in_features(original), *head.hidden, num_classes]
    layers: list[nn.Module] = []
    for in_features, out_features in itertools.pairwise(widths[:-1]):
        layers += [_build_layer(original, in_features, out_features, head.init), _ACTIVATIONS[head.activation]()]
    if head.dropout:
        layers.append(nn.Dropout(head.dropout))
    layers.append(_build_layer(original, widths[-2], num_classes, head.init))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def replace_head(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a path."""
    model.set_submodule(path, module, strict=True)


def reset_classifier(model: nn.Module, recipe: Recipe, head_path: str, num_classes: int) -> None:
    """Replace the module at `head_path` by the recipe's head for `num_classes` classes, initialized from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "head"))
        replace_head(model, head_path, build_head(model.get_submodule(head_path), recipe.head, num_classes))


def _in_features(layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def _build_layer(original: nn.Module, in_features: int, out_features: int, init: str) -> nn.Linear | nn.Conv2d:
    weight = original.weight
    assert isinstance(weight, torch.Tensor)
    layer: nn.Linear | nn.Conv2d
    if isinstance(original, nn.Conv2d):
        layer = nn.Conv2d(in_features, out_features, kernel_size=1, device=weight.device, dtype=weight.dtype)
    else:
        layer = nn.Linear(in_features, out_features, device=weight.device, dtype=weight.dtype)
    if init != "default" and not weight.is_meta:
        assert layer.bias is not None
        _INITS[init](layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
