"""Whose tensors these are: the known model that a weights file was written from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from ftcli.errors import RecipeError
from ftcli.models.anatomy import examine, find_head
from ftcli.models.embeddings import is_embedding
from ftcli.models.fitting import Fit, Tensors, find_copy, fit_names, fit_order, is_counter
from ftcli.models.published import TIMM, list_published
from ftcli.models.zoo import build_network, find_native_size, list_models, list_timm_models

_NEAR = 0.04  # how far a number of parameters may be from a model's: BatchNorm's statistics are counted in a file
_MOST = 6  # models that are looked at


def find_owners(
    tensors: Tensors, architecture: str | None, model: str
) -> list[tuple[str, Literal["name", "position"]]]:
    """The models, and how, that the tensors of a file fit: torchvision's of about as many parameters, and the one that
    the file itself names. `model`, which they do not fit, is passed over. No memory is taken for weights."""
    names = dict.fromkeys([*_name_architecture(architecture), *_list_near(tensors)])
    names.pop(model, None)
    found = [(name, match) for name in names if (match := _match(name, tensors))]
    return [owner for owner in found if owner[1] == "name"] or found


def _name_architecture(architecture: str | None) -> Iterable[str]:
    if architecture in list_models():
        yield architecture
    if architecture is not None and f"{TIMM}{architecture}" in list_timm_models():
        yield f"{TIMM}{architecture}"


def _list_near(tensors: Tensors) -> list[str]:
    """torchvision's models by how near their published number of parameters is to that of a file, the nearest first.

    A file may have a head of another size or none, so that its number with a head for as many classes counts too.
    """
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    total = sum(tensor.numel() for tensor in floating)
    matrices = [tensor for tensor in floating if tensor.ndim > 1]
    heads = [(tensor.shape[1], tensor.numel() + tensor.shape[0]) for tensor in matrices[-1:]]
    heads += [(tensor.shape[0], 0) for tensor in floating[-1:] if tensor.ndim == 1]
    distances: dict[str, float] = {}
    for name in list_models():
        entry = next((entry for entry in list_published(name) if entry.default and entry.parameters), None)
        if entry is None or entry.parameters is None:
            continue
        classes = len(entry.handle.meta["categories"])
        totals = [total, *(total - own + (width + 1) * classes for width, own in heads)]
        distances[name] = min(abs(math.log(max(count, 1) / entry.parameters)) for count in totals)
    near = sorted((distance, name) for name, distance in distances.items() if distance < _NEAR)
    return [name for _, name in near[:_MOST]]


def _match(name: str, tensors: Tensors) -> Literal["name", "position"] | None:
    network = build_network(name, True)
    wanted = network.state_dict()
    if not _share_shapes(tensors, wanted):
        return None
    try:
        head = find_head(network, examine(network, find_native_size(name))).path
    except RecipeError:
        return None
    by_name = fit_names(find_copy(tensors, wanted, head).tensors, wanted, head)
    if isinstance(by_name, Fit) and all(is_embedding(other) for other in by_name.find_misshapen(wanted, head)):
        return "name"
    by_order = fit_order(tensors, wanted, head)
    return "position" if by_order and not by_order.find_misshapen(wanted, head) else None


def _share_shapes(tensors: Tensors, wanted: Tensors) -> bool:
    """Whether nearly all of a network's shapes are in the file: quick to tell, and most models are ruled out by it."""
    theirs, own = (
        Counter(tensor.shape for name, tensor in side.items() if not is_counter(name)) for side in (tensors, wanted)
    )
    return (own - theirs).total() <= 4
