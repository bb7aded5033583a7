"""Position embeddings of transformers for images of another size than they were trained with."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

_TORCHVISION_POS_EMBED = "encoder.pos_embedding"
_TIMM_POS_EMBED = "pos_embed"
_BIAS_TABLE = "relative_position_bias_table"
_FILTER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What timm's functions raise for tensors that they were not written for."""


class PosEmbedResizeError(Exception):
    """Position embeddings that cannot be brought to another size; `str` is the reason."""


def resize_pos_embed(
    model: nn.Module, tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The named tensors, in the shapes of a network, and a sentence on each kind; nothing where they are not all
    position embeddings of the network's width.

    They are interpolated by torchvision's function in its ViT, and in timm's networks by the function that timm loads
    that network's weights with. Raises PosEmbedResizeError where they are no square grid, or the library has no means.
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
        raise PosEmbedResizeError(f"{chosen[0]} cannot be interpolated: its library has no means for that")
    return {name: changed[name] for name in chosen}, messages


def remap_keys(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """The tensors of another program's file under the names of a timm network, and a sentence on each kind of position
    embeddings that was interpolated on the way, by the function that timm loads such files with.

    None where timm has none for this network, or it was not written for this file. Raises PosEmbedResizeError.
    """
    remapped = _apply_checkpoint_filter(model, tensors)
    if remapped is None:
        return None
    shared = {name: (tensors[name], tensor) for name, tensor in remapped.items() if name in tensors}
    changed = {name: (old, new) for name, (old, new) in shared.items() if is_pos_embed(name) and old.shape != new.shape}
    return remapped, _describe_changes(model, changed)


def _apply_checkpoint_filter(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    module = type(model).__module__
    if not module.startswith("timm.") or not hasattr(sys.modules[module], "checkpoint_filter_fn"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what timm's code must do otherwise one day is not for our users
            changed = sys.modules[module].checkpoint_filter_fn(dict(tensors), model)
        return {str(name): tensor for name, tensor in changed.items() if isinstance(tensor, Tensor)}
    except _FILTER_ERRORS:
        return None


def is_pos_embed(name: str) -> bool:
    """Whether a tensor holds position embeddings, whose shape depends on the size of images."""
    return name == _TORCHVISION_POS_EMBED or name.rpartition(".")[2] in (_TIMM_POS_EMBED, _BIAS_TABLE)


def _describe_changes(model: nn.Module, changes: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    sentences = Counter(_describe_resize(model, name, old, new) for name, (old, new) in changes.items())
    return [f"{sentence} ({count} times)" if count > 1 else sentence for sentence, count in sentences.items()]


def _describe_resize(model: nn.Module, name: str, old: Tensor, new: Tensor) -> str:
    """What is interpolated, in words. Raises PosEmbedResizeError where it is no square grid."""
    if name.endswith(_BIAS_TABLE):
        before, after = _window_size(old), _window_size(new)
        kind = "relative position tables of windows"
    else:
        num_prefix_tokens = _num_prefix_tokens(model, new)
        before, after = _grid_size(old, num_prefix_tokens), _grid_size(new, num_prefix_tokens)
        kind = "position embeddings"
    if not before or not after:
        shapes = f"[{', '.join(map(str, old.shape))}] to [{', '.join(map(str, new.shape))}]"
        raise PosEmbedResizeError(f"{name} cannot be interpolated from {shapes}, since these are not both square grids")
    return f"{kind} of {before} x {before} interpolated to {after} x {after}"


def _num_prefix_tokens(model: nn.Module, embeddings: Tensor) -> int:
    """How many of a network's places are not the grid's but those of tokens, such as the class token."""
    if isinstance(model, VisionTransformer):
        return 1
    num_patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return embeddings.shape[1] - num_patches if isinstance(num_patches, int) and embeddings.ndim == 3 else 0


def _grid_size(embeddings: Tensor, num_prefix_tokens: int) -> int | None:
    """The side of the square that embeddings [1, places, width] are for, None if there is none."""
    num_positions = embeddings.shape[1] - num_prefix_tokens if embeddings.ndim == 3 and len(embeddings) == 1 else 0
    side = math.isqrt(max(num_positions, 0))
    return side if side and side * side == num_positions else None


def _window_size(table: Tensor) -> int | None:
    """The side of the square window that a table [offsets, heads] is for; BEiT's has three rows more."""
    rows = table.shape[0]
    for num_extra_rows in (0, 3):
        side = math.isqrt(max(rows - num_extra_rows, 0))
        if side % 2 and side * side == rows - num_extra_rows:
            return (side + 1) // 2
    return None
