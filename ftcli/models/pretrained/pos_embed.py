"""Resize the position embeddings of pretrained transformers for another image size."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from ftcli.models.state_dict import StateDict, format_shape

_TORCHVISION_POS_EMBED = "encoder.pos_embedding"
_TIMM_POS_EMBED = "pos_embed"
_BIAS_TABLE = "relative_position_bias_table"
_FILTER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""The errors of timm's functions for tensors that they do not support."""


class PosEmbedResizeError(Exception):
    """Position embeddings cannot be resized; the text is the reason."""


def resize_pos_embed(model: nn.Module, tensors: StateDict, names: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the named tensors resized to the network's shapes, and a message for each kind of resize; both empty
    unless all are position embeddings of the network's width.

    torchvision's ViT is resized by torchvision's function, timm's networks by the checkpoint filter of timm. Raises
    PosEmbedResizeError for embeddings of a non-square grid, or without such a function in the library.
    """
    model_state, chosen = model.state_dict(), list(names)
    if not chosen or not all(
        is_pos_embed(name) and tensors[name].shape[-1:] == model_state[name].shape[-1:] for name in chosen
    ):
        return {}, []
    messages = _describe_changes(model, {name: (tensors[name], model_state[name]) for name in chosen})
    if isinstance(model, VisionTransformer):
        changed: Mapping[str, Tensor] | None = interpolate_embeddings(
            model.image_size, model.patch_size, OrderedDict({_TORCHVISION_POS_EMBED: tensors[_TORCHVISION_POS_EMBED]})
        )
    else:
        changed = _apply_checkpoint_filter(model, tensors)
    if changed is None or any(name not in changed or changed[name].shape != model_state[name].shape for name in chosen):
        raise PosEmbedResizeError(f"{chosen[0]} cannot be interpolated: its library does not support it")
    return {name: changed[name] for name in chosen}, messages


def remap_keys(model: nn.Module, tensors: StateDict) -> tuple[dict[str, Tensor], list[str]] | None:
    """Return the tensors of another program's file under the names of a timm network, remapped by timm's checkpoint
    filter, and a message for each kind of resized position embeddings.

    None if timm has no filter for this network or it does not support this file. Raises PosEmbedResizeError.
    """
    remapped = _apply_checkpoint_filter(model, tensors)
    if remapped is None:
        return None
    shared = {name: (tensors[name], tensor) for name, tensor in remapped.items() if name in tensors}
    changed = {name: (old, new) for name, (old, new) in shared.items() if is_pos_embed(name) and old.shape != new.shape}
    return remapped, _describe_changes(model, changed)


def _apply_checkpoint_filter(model: nn.Module, tensors: StateDict) -> dict[str, Tensor] | None:
    module = type(model).__module__
    if not module.startswith("timm.") or not hasattr(sys.modules[module], "checkpoint_filter_fn"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's filters cause deprecation warnings
            changed = sys.modules[module].checkpoint_filter_fn(dict(tensors), model)
        return {str(name): tensor for name, tensor in changed.items() if isinstance(tensor, Tensor)}
    except _FILTER_ERRORS:
        return None


def is_pos_embed(name: str) -> bool:
    """Return whether a tensor holds position embeddings, whose shape depends on the image size."""
    return name == _TORCHVISION_POS_EMBED or name.rpartition(".")[2] in (_TIMM_POS_EMBED, _BIAS_TABLE)


def _describe_changes(model: nn.Module, changes: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    messages = Counter(_describe_resize(model, name, old, new) for name, (old, new) in changes.items())
    return [f"{message} ({count} times)" if count > 1 else message for message, count in messages.items()]


def _describe_resize(model: nn.Module, name: str, old: Tensor, new: Tensor) -> str:
    """Return a message such as "position embeddings of 7 x 7 interpolated to 4 x 4".

    Raises PosEmbedResizeError unless both grids are square.
    """
    if name.endswith(_BIAS_TABLE):
        before, after = _window_size(old), _window_size(new)
        kind = "relative position tables of windows"
    else:
        num_prefix_tokens = _num_prefix_tokens(model, new)
        before, after = _grid_size(old, num_prefix_tokens), _grid_size(new, num_prefix_tokens)
        kind = "position embeddings"
    if not before or not after:
        raise PosEmbedResizeError(
            f"{name} cannot be interpolated from {format_shape(old)} to {format_shape(new)}: only square grids are "
            "supported"
        )
    return f"{kind} of {before} x {before} interpolated to {after} x {after}"


def _num_prefix_tokens(model: nn.Module, embeddings: Tensor) -> int:
    """Return the number of embeddings before those of the grid, such as the class token's."""
    if isinstance(model, VisionTransformer):
        return 1
    num_patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return embeddings.shape[1] - num_patches if isinstance(num_patches, int) and embeddings.ndim == 3 else 0


def _grid_size(embeddings: Tensor, num_prefix_tokens: int) -> int | None:
    """Return the side of the square grid of embeddings [1, positions, width], None if the grid is not square."""
    num_positions = embeddings.shape[1] - num_prefix_tokens if embeddings.ndim == 3 and len(embeddings) == 1 else 0
    side = math.isqrt(max(num_positions, 0))
    return side if side and side * side == num_positions else None


def _window_size(table: Tensor) -> int | None:
    """Return the side of the square window of a bias table [offsets, heads], None if the window is not square.

    BEiT's table has three extra rows.
    """
    rows = table.shape[0]
    for num_extra_rows in (0, 3):
        side = math.isqrt(max(rows - num_extra_rows, 0))
        if side % 2 and side * side == rows - num_extra_rows:
            return (side + 1) // 2
    return None
