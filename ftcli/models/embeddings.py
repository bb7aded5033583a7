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

_TORCHVISION = "encoder.pos_embedding"
_TIMM = "pos_embed"
_TABLE = "relative_position_bias_table"
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What timm's functions raise for tensors that they were not written for."""


class UnfitEmbeddings(Exception):
    """Position embeddings that cannot be brought to another size; `str` is the reason."""


def resize_embeddings(
    model: nn.Module, tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The named tensors, in the shapes of a network, and a sentence on each kind; nothing where they are not all
    position embeddings of the network's width.

    They are interpolated by torchvision's function in its ViT, and in timm's networks by the function that timm loads
    that network's weights with. Raises UnfitEmbeddings where they are no square grid, or the library has no means.
    """
    wanted, chosen = model.state_dict(), list(names)
    if not chosen or not all(
        is_embedding(name) and tensors[name].shape[-1:] == wanted[name].shape[-1:] for name in chosen
    ):
        return {}, []
    told = _tell(model, {name: (tensors[name], wanted[name]) for name in chosen})
    if isinstance(model, VisionTransformer):
        changed: Mapping[str, Tensor] | None = interpolate_embeddings(
            model.image_size, model.patch_size, OrderedDict({_TORCHVISION: tensors[_TORCHVISION]})
        )
    else:
        changed = _filter(model, tensors)
    if changed is None or any(name not in changed or changed[name].shape != wanted[name].shape for name in chosen):
        raise UnfitEmbeddings(f"{chosen[0]} cannot be interpolated: its library has no means for that")
    return {name: changed[name] for name in chosen}, told


def translate_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """The tensors of another program's file under the names of a timm network, and a sentence on each kind of position
    embeddings that was interpolated on the way, by the function that timm loads such files with.

    None where timm has none for this network, or it was not written for this file. Raises UnfitEmbeddings.
    """
    translated = _filter(model, tensors)
    if translated is None:
        return None
    both = {name: (tensors[name], tensor) for name, tensor in translated.items() if name in tensors}
    changed = {name: (old, new) for name, (old, new) in both.items() if is_embedding(name) and old.shape != new.shape}
    return translated, _tell(model, changed)


def _filter(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    module = type(model).__module__
    if not module.startswith("timm.") or not hasattr(sys.modules[module], "checkpoint_filter_fn"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what timm's code must do otherwise one day is not for our users
            changed = sys.modules[module].checkpoint_filter_fn(dict(tensors), model)
        return {str(name): tensor for name, tensor in changed.items() if isinstance(tensor, Tensor)}
    except _REFUSALS:
        return None


def is_embedding(name: str) -> bool:
    """Whether a tensor holds position embeddings, whose shape depends on the size of images."""
    return name == _TORCHVISION or name.rpartition(".")[2] in (_TIMM, _TABLE)


def _tell(model: nn.Module, changes: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    sentences = Counter(_describe(model, name, old, new) for name, (old, new) in changes.items())
    return [f"{sentence} ({count} times)" if count > 1 else sentence for sentence, count in sentences.items()]


def _describe(model: nn.Module, name: str, old: Tensor, new: Tensor) -> str:
    """What is interpolated, in words. Raises UnfitEmbeddings where it is no square grid."""
    if name.endswith(_TABLE):
        before, after = _measure_window(old), _measure_window(new)
        what = "relative position tables of windows"
    else:
        tokens = _count_tokens(model, new)
        before, after = _measure_grid(old, tokens), _measure_grid(new, tokens)
        what = "position embeddings"
    if not before or not after:
        shapes = f"[{', '.join(map(str, old.shape))}] to [{', '.join(map(str, new.shape))}]"
        raise UnfitEmbeddings(f"{name} cannot be interpolated from {shapes}, since these are not both square grids")
    return f"{what} of {before} x {before} interpolated to {after} x {after}"


def _count_tokens(model: nn.Module, embeddings: Tensor) -> int:
    """How many of a network's places are not the grid's but those of tokens, such as the class token."""
    if isinstance(model, VisionTransformer):
        return 1
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return embeddings.shape[1] - patches if isinstance(patches, int) and embeddings.ndim == 3 else 0


def _measure_grid(embeddings: Tensor, tokens: int) -> int | None:
    """The side of the square that embeddings [1, places, width] are for, None if there is none."""
    places = embeddings.shape[1] - tokens if embeddings.ndim == 3 and len(embeddings) == 1 else 0
    side = math.isqrt(max(places, 0))
    return side if side and side * side == places else None


def _measure_window(table: Tensor) -> int | None:
    """The side of the square window that a table [offsets, heads] is for; BEiT's has three rows more."""
    rows = table.shape[0]
    for extra in (0, 3):
        side = math.isqrt(max(rows - extra, 0))
        if side % 2 and side * side == rows - extra:
            return (side + 1) // 2
    return None
