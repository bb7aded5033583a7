"""Whose tensors these are: the known model that a weights file was written from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from ftcli.errors import RecipeError
from ftcli.models.factory import create_model, list_timm_models, list_torchvision_models, native_image_size
from ftcli.models.pretrained.pos_embed import is_pos_embed
from ftcli.models.pretrained.pretrained_cfg import TIMM_PREFIX, list_pretrained_weights
from ftcli.models.pretrained.state_dict_matching import (
    Match,
    StateDict,
    is_batch_counter,
    match_by_name,
    match_by_position,
    strip_prefix,
)
from ftcli.models.summary import find_head, summarize

_MAX_LOG_RATIO = (
    0.04  # how far a number of parameters may be from a model's: BatchNorm's statistics are counted in a file
)
_MAX_CANDIDATES = 6  # models that are looked at


def guess_architecture(
    tensors: StateDict, architecture: str | None, model: str
) -> list[tuple[str, Literal["name", "position"]]]:
    """The models, and how, that the tensors of a file fit: torchvision's of about as many parameters, and the one that
    the file itself names. `model`, which they do not fit, is passed over. No memory is taken for weights."""
    candidates = dict.fromkeys([*_models_named(architecture), *_models_of_similar_size(tensors)])
    candidates.pop(model, None)
    matches = [(name, match) for name in candidates if (match := _match_model(name, tensors))]
    return [owner for owner in matches if owner[1] == "name"] or matches


def _models_named(architecture: str | None) -> Iterable[str]:
    if architecture in list_torchvision_models():
        yield architecture
    if architecture is not None and f"{TIMM_PREFIX}{architecture}" in list_timm_models():
        yield f"{TIMM_PREFIX}{architecture}"


def _models_of_similar_size(tensors: StateDict) -> list[str]:
    """torchvision's models by how near their published number of parameters is to that of a file, the nearest first.

    A file may have a head of another size or none, so that its number with a head for as many classes counts too.
    """
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    total = sum(tensor.numel() for tensor in floating)
    matrices = [tensor for tensor in floating if tensor.ndim > 1]
    heads = [(tensor.shape[1], tensor.numel() + tensor.shape[0]) for tensor in matrices[-1:]]
    heads += [(tensor.shape[0], 0) for tensor in floating[-1:] if tensor.ndim == 1]
    distances: dict[str, float] = {}
    for name in list_torchvision_models():
        entry = next((entry for entry in list_pretrained_weights(name) if entry.is_default and entry.parameters), None)
        if entry is None or entry.parameters is None:
            continue
        classes = len(entry.library_entry.meta["categories"])
        totals = [total, *(total - own + (width + 1) * classes for width, own in heads)]
        distances[name] = min(abs(math.log(max(count, 1) / entry.parameters)) for count in totals)
    nearest = sorted((distance, name) for name, distance in distances.items() if distance < _MAX_LOG_RATIO)
    return [name for _, name in nearest[:_MAX_CANDIDATES]]


def _match_model(name: str, tensors: StateDict) -> Literal["name", "position"] | None:
    network = create_model(name, True)
    model_state = network.state_dict()
    if not _has_similar_shapes(tensors, model_state):
        return None
    try:
        head = find_head(network, summarize(network, native_image_size(name))).path
    except RecipeError:
        return None
    by_name = match_by_name(strip_prefix(tensors, model_state, head).tensors, model_state, head)
    if isinstance(by_name, Match) and all(
        is_pos_embed(other) for other in by_name.find_shape_mismatches(model_state, head)
    ):
        return "name"
    by_position = match_by_position(tensors, model_state, head)
    return "position" if by_position and not by_position.find_shape_mismatches(model_state, head) else None


def _has_similar_shapes(tensors: StateDict, model_state: StateDict) -> bool:
    """Whether nearly all of a network's shapes are in the file: quick to tell, and most models are ruled out by it."""
    file_shapes, model_shapes = (
        Counter(tensor.shape for name, tensor in state_dict.items() if not is_batch_counter(name))
        for state_dict in (tensors, model_state)
    )
    return (model_shapes - file_shapes).total() <= 4
