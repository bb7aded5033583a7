"""Activations of a network's layers for one image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ftcli.data.transforms import Normalizer, build_eval_transform
from ftcli.errors import RecipeError, suggest
from ftcli.evaluation.classifier import LoadedModel
from ftcli.models.hooks import forward_hooks
from ftcli.models.summary import ModelSummary, summarize

DEFAULT_NUM_LAYERS = 5
"""The number of layers shown without --layer."""


@dataclass(frozen=True)
class LayerActivation:
    """A layer's output for one image: its shape, and `maps`, float32 (channels, height, width)."""

    name: str
    shape: tuple[int, ...]
    maps: Tensor


@dataclass(frozen=True)
class Activations:
    """The forward pass of one image.

    `pixels` is the input as uint8 (3, size, size), `filters` the weights of the first convolution (None if there is
    none), `probabilities` are those of the classes.
    """

    pixels: Tensor
    filter_layer: str
    filters: Tensor | None
    layers: tuple[LayerActivation, ...]
    probabilities: Tensor


def compute_activations(loaded: LoadedModel, image: Image.Image, layer_names: Sequence[str]) -> Activations:
    """Run a network on an RGB image, in eval mode on the CPU, and return the activations of some layers.

    Without names five layers are chosen. Raises RecipeError for an unknown layer, or one whose output is not a feature
    map.
    """
    model, size = loaded.model.eval(), loaded.preprocessing.image_size
    summary = summarize(model, size)
    num_prefix_tokens = int(getattr(model, "num_prefix_tokens", 1))
    chosen = (
        check_layers(summary, layer_names, num_prefix_tokens)
        if layer_names
        else choose_layers(model, summary, loaded.head, num_prefix_tokens)
    )
    pixels = build_eval_transform(loaded.preprocessing)(image)
    outputs, logits = _run_with_hooks(
        model, Normalizer(loaded.preprocessing, torch.device("cpu"))(pixels[None]), chosen
    )
    layer_activations = tuple(
        LayerActivation(name, get_output_shape(summary, name), to_channels_first(outputs[name], num_prefix_tokens))
        for name in chosen
    )
    name, filters = _find_first_conv(model, summary)
    return Activations(pixels, name, filters, layer_activations, logits.double().softmax(1)[0])


def choose_layers(model: nn.Module, summary: ModelSummary, head: str, num_prefix_tokens: int) -> tuple[str, ...]:
    """Choose layers from the first to the last, at the shallowest depth of the module tree that has at least four.

    They have weights, give feature maps, and do not contain each other or the head.
    """
    candidates = [
        name
        for name, module in model.named_modules()
        if name in summary.exit_order
        and name
        and not f"{name}.".startswith(f"{head}.")
        and not f"{head}.".startswith(f"{name}.")
        and infer_grid_size(summary.shapes.get(name), num_prefix_tokens) is not None
        and any(parameter.ndim > 1 for parameter in module.parameters())
    ]
    max_depth = max((name.count(".") for name in candidates), default=0)
    for depth in range(max_depth + 1):
        names_at_depth = [name for name in candidates if name.count(".") <= depth]
        outermost = [
            name for name in names_at_depth if not any(other.startswith(f"{name}.") for other in names_at_depth)
        ]
        if len(outermost) >= 4 or depth == max_depth:
            break
    ordered = sorted(outermost, key=lambda name: summary.exit_order[name])
    if len(ordered) <= DEFAULT_NUM_LAYERS:
        return tuple(ordered)
    return tuple(
        ordered[round(index * (len(ordered) - 1) / (DEFAULT_NUM_LAYERS - 1))] for index in range(DEFAULT_NUM_LAYERS)
    )


def check_layers(summary: ModelSummary, layer_names: Sequence[str], num_prefix_tokens: int) -> tuple[str, ...]:
    """Return the layers, or raise RecipeError with an error for each that cannot be drawn."""
    errors = []
    for name in layer_names:
        if name not in summary.exit_order or not name:
            known = [known for known in summary.exit_order if known]
            errors.append(f"--layer {name}: the forward pass calls no module of this name; {suggest(name, known)}")
        elif infer_grid_size(summary.shapes[name], num_prefix_tokens) is None:
            shape = summary.shapes[name]
            description = "not one tensor" if shape is None else f"of shape {list(shape)}, not a feature map"
            errors.append(f"--layer {name}: its output is {description}; choose a layer with feature maps")
    if errors:
        raise RecipeError(*errors)
    return tuple(layer_names)


def infer_grid_size(shape: tuple[int, ...] | None, num_prefix_tokens: int) -> tuple[int, int] | None:
    """Return height and width of a layer's output for one image; None if it is not a feature map.

    It may be (channels, h, w), (h, w, channels) or tokens (prefix tokens and h * w, channels), with h = w > 1.
    """
    if shape is None:
        return None
    if len(shape) == 3:
        first, second, third = shape
        if second == third > 1:
            return second, third
        return (first, second) if first == second > 1 else None
    if len(shape) == 2:
        for num_tokens in (shape[0], shape[0] - 1, shape[0] - num_prefix_tokens):
            side = math.isqrt(max(0, num_tokens))
            if side > 1 and side * side == num_tokens:
                return side, side
    return None


def to_channels_first(output: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return a layer's output for a batch of one image as float32 (channels, height, width)."""
    values = output[0].float()
    grid_size = infer_grid_size(tuple(values.shape), num_prefix_tokens)
    assert grid_size is not None
    if values.ndim == 2:  # prefix tokens come first
        return values[values.shape[0] - grid_size[0] * grid_size[1] :].reshape(*grid_size, -1).permute(2, 0, 1)
    return values if tuple(values.shape[1:]) == grid_size else values.permute(2, 0, 1)


def get_output_shape(summary: ModelSummary, name: str) -> tuple[int, ...]:
    """Return the shape of a layer's output, which must be a tensor."""
    shape = summary.shapes[name]
    assert shape is not None
    return shape


def _run_with_hooks(
    model: nn.Module, inputs: Tensor, layer_names: Sequence[str]
) -> tuple[Mapping[str, Tensor], Tensor]:
    outputs: dict[str, Tensor] = {}
    # A copy: later layers may change it in place.
    record = forward_hooks(model, layer_names, on_output=lambda name, output: outputs.update({name: output.clone()}))
    with record, torch.inference_mode():
        logits: Tensor = model(inputs)
    return outputs, logits


def _find_first_conv(model: nn.Module, summary: ModelSummary) -> tuple[str, Tensor | None]:
    for name in sorted(summary.enter_order, key=lambda name: summary.enter_order[name]):
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach()
    return "", None
