"""The layers that take the place of a network's own classifier."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from ftcli.recipe.schema import Head

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
    """A head for `classes` classes that reads what `original`, a Linear or 1 x 1 Conv2d, reads.

    Its layers are of the same kind, device and number format, with biases. Without hidden layers and dropout it is a
    single layer, so that its tensors keep the names of the original's; otherwise a Sequential of each hidden layer
    with its activation, the dropout, and the last layer. Weights are drawn as the recipe says (Xavier: Glorot and
    Bengio, AISTATS 2010; Kaiming: He et al., arXiv 1502.01852, both by inputs) and biases begin at 0; `default` is
    PyTorch's own for both. On the meta device nothing is drawn.
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
    """Put a module at the place of another, whose name it takes."""
    model.set_submodule(path, module, strict=True)


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
