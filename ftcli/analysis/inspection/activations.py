"""What the layers of a network give for one image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ftcli.analysis.subjects import Subject
from ftcli.data.transforms import Normalizer, build_eval_transform
from ftcli.errors import RecipeError, suggest
from ftcli.models.anatomy import Anatomy, examine

SHOWN = 5
"""Layers that are shown where none are named."""


@dataclass(frozen=True)
class LayerView:
    """The output of a layer for one image: `maps` as float32 (channels, height, width), `shape` as the layer has it."""

    name: str
    shape: tuple[int, ...]
    maps: Tensor


@dataclass(frozen=True)
class Look:
    """What a network makes of one image. `pixels` is its input as uint8 (3, size, size), `filters` the weights of the
    first convolution (None where there is none), `probabilities` those of the classes."""

    pixels: Tensor
    filter_layer: str
    filters: Tensor | None
    views: tuple[LayerView, ...]
    probabilities: Tensor


def look_at(subject: Subject, image: Image.Image, layers: Sequence[str]) -> Look:
    """Send an RGB image through a network, in eval mode on the CPU, and keep what the layers give.

    Without `layers` five are chosen from the first to the last. Raises RecipeError for a layer that is not there or
    whose output is no image.
    """
    model, size = subject.model.eval(), subject.preprocessing.image_size
    anatomy = examine(model, size)
    prefixes = int(getattr(model, "num_prefix_tokens", 1))
    chosen = (
        check_layers(anatomy, layers, prefixes) if layers else choose_layers(model, anatomy, subject.head, prefixes)
    )
    pixels = build_eval_transform(subject.preprocessing)(image)
    outputs, logits = _run(model, Normalizer(subject.preprocessing, torch.device("cpu"))(pixels[None]), chosen)
    views = tuple(LayerView(name, shape_of(anatomy, name), arrange(outputs[name], prefixes)) for name in chosen)
    name, filters = _find_filters(model, anatomy)
    return Look(pixels, name, filters, views, logits.double().softmax(1)[0])


def choose_layers(model: nn.Module, anatomy: Anatomy, head: str, prefixes: int) -> tuple[str, ...]:
    """Layers from the first to the last whose outputs are images, of a level of the network that has at least four.

    They have parameters, are no norm layers and lie outside the head; of one within another the outer is taken.
    """
    able = [
        name
        for name, module in model.named_modules()
        if name in anatomy.left
        and name
        and not f"{name}.".startswith(f"{head}.")
        and not f"{head}.".startswith(f"{name}.")
        and find_grid(anatomy.shapes.get(name), prefixes) is not None
        and any(parameter.ndim > 1 for parameter in module.parameters())
    ]
    deepest = max((name.count(".") for name in able), default=0)
    for depth in range(deepest + 1):
        level = [name for name in able if name.count(".") <= depth]
        outermost = [name for name in level if not any(other.startswith(f"{name}.") for other in level)]
        if len(outermost) >= 4 or depth == deepest:
            break
    ordered = sorted(outermost, key=lambda name: anatomy.left[name])
    if len(ordered) <= SHOWN:
        return tuple(ordered)
    return tuple(ordered[round(place * (len(ordered) - 1) / (SHOWN - 1))] for place in range(SHOWN))


def check_layers(anatomy: Anatomy, layers: Sequence[str], prefixes: int) -> tuple[str, ...]:
    """The layers as they are, or a RecipeError with a sentence for each that cannot be drawn."""
    faults = []
    for name in layers:
        if name not in anatomy.left or not name:
            known = [known for known in anatomy.left if known]
            faults.append(f"--layer {name}: no image passes through a module of this name; {suggest(name, known)}")
        elif find_grid(anatomy.shapes[name], prefixes) is None:
            shape = anatomy.shapes[name]
            told = "no single tensor" if shape is None else f"of shape {list(shape)}"
            faults.append(f"--layer {name}: its output is {told}, which is no image; choose a layer that gives one")
    if faults:
        raise RecipeError(*faults)
    return tuple(layers)


def find_grid(shape: tuple[int, ...] | None, prefixes: int) -> tuple[int, int] | None:
    """Height and width of a layer's output for one image, read as (channels, h, w), (h, w, channels) or tokens
    (h * w and class tokens, channels); None where it is none of these, or a single point."""
    if shape is None:
        return None
    if len(shape) == 3:
        first, second, third = shape
        if second == third > 1:
            return second, third
        return (first, second) if first == second > 1 else None
    if len(shape) == 2:
        for tokens in (shape[0], shape[0] - 1, shape[0] - prefixes):
            side = math.isqrt(max(0, tokens))
            if side > 1 and side * side == tokens:
                return side, side
    return None


def arrange(output: Tensor, prefixes: int) -> Tensor:
    """A layer's output for one image as float32 (channels, height, width), whose shape `find_grid` knows."""
    values = output[0].float()
    grid = find_grid(tuple(values.shape), prefixes)
    assert grid is not None
    if values.ndim == 2:  # class tokens come first
        return values[values.shape[0] - grid[0] * grid[1] :].reshape(*grid, -1).permute(2, 0, 1)
    return values if tuple(values.shape[1:]) == grid else values.permute(2, 0, 1)


def shape_of(anatomy: Anatomy, name: str) -> tuple[int, ...]:
    """The shape of a layer's output, which must be a tensor."""
    shape = anatomy.shapes[name]
    assert shape is not None
    return shape


def _run(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> tuple[Mapping[str, Tensor], Tensor]:
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            # A copy: what follows may work in place.
            lambda _module, _inputs, output, name=name: outputs.update({name: output.clone()})
        )
        for name in dict.fromkeys(names)
    ]
    try:
        with torch.inference_mode():
            logits: Tensor = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, logits


def _find_filters(model: nn.Module, anatomy: Anatomy) -> tuple[str, Tensor | None]:
    for name in sorted(anatomy.entered, key=lambda name: anatomy.entered[name]):
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach()
    return "", None
