"""Pretrained weights into a network: every tensor of its backbone finds its place, or nothing is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from ftcli.errors import CheckpointError, format_list
from ftcli.models.factory import create_model, default_preprocessing, list_aux_heads, scale_preprocessing
from ftcli.models.pretrained.mismatches import (
    MatchContext,
    format_shape,
    name_mismatch_error,
    position_mismatch_error,
)
from ftcli.models.pretrained.pos_embed import PosEmbedResizeError, remap_keys, resize_pos_embed
from ftcli.models.pretrained.pretrained_cfg import TIMM_PREFIX
from ftcli.models.pretrained.state_dict_matching import (
    Match,
    Mismatch,
    StateDict,
    StrippedStateDict,
    is_inside,
    match_by_name,
    match_by_position,
    strip_prefix,
)
from ftcli.models.pretrained.state_dict_reading import StateDictFile, read_state_dict
from ftcli.models.pretrained.weights_files import WeightsFile, resolve_weights
from ftcli.models.state_dict import copy_state_dict
from ftcli.models.summary import find_head, summarize
from ftcli.recipe.schema import Backbone
from ftcli.results import Preprocessing, Reporter
from ftcli.runtime import derive_seed


@dataclass(frozen=True)
class WeightsInfo:
    """Where a network's weights came from: none, an address, or what the recipe says; and its file's SHA-256.

    `loaded` is how many tensors of the file were loaded; `left_out` are the others that the network has no use for,
    each with its shape.
    """

    source: str
    sha256: str | None
    num_loaded: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PretrainedModel:
    """A network as its library has it, with its original head at the path `head`, and with pretrained weights."""

    model: nn.Module
    head: str
    weights_info: WeightsInfo
    preprocessing: Preprocessing


def load_pretrained(
    backbone: Backbone,
    location: str,
    reporter: Reporter,
    image_size: int | None = None,
    size_location: str = "data.image_size",
) -> PretrainedModel:
    """A network in eval mode with what `backbone` says, made for images of `image_size`, or of the weights' own size.

    The head is the network's original one, with the file's weights where they fit it and random ones otherwise, the
    same each time. The preprocessing is the weights', scaled to the size. The model's name must be known. Raises as
    `load_weights` does, and RecipeError that begins with `size_location` for a size that the network refuses.
    """
    opened = _open_weights(backbone, location, reporter)
    preprocessing = _choose_preprocessing(backbone, opened, location)
    if image_size is not None:
        preprocessing = scale_preprocessing(preprocessing, image_size)
    size = preprocessing.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("pretrained"))
        model = create_model(backbone.name, False, size, size_location)
    head = find_head(model, summarize(model, size, size_location), location).path
    weights_info = _match_and_load(model, backbone, head, opened, location, reporter)
    return PretrainedModel(model, head, weights_info, preprocessing)


def load_weights(
    model: nn.Module, backbone: Backbone, head_path: str, location: str, reporter: Reporter
) -> WeightsInfo:
    """Load what a recipe's `backbone` says into a network that still has its original head, all of it or nothing.

    - match: name: after what wraps a network's names (`module.`, `model.`, `_orig_mod.` and the like) is taken off,
      every tensor of the backbone must be there in its shape, and none may be left over; what belongs to other modules
      of the file is left out. Files of another program for a timm network are translated by timm's own function.
    - match: position: as many tensors as the network has, in its order, each of the same shape; names do not matter.

    In both, the head's tensors (those below `head_path`) may be missing, or another head's: they are then left as they
    are, and BatchNorm's batch counters may be missing. Position embeddings for images of another size are interpolated.
    The reporter is told what was left out, chosen or changed. Call it before the head is replaced: a replaced head of
    the same size would take the file's.

    Raises RecipeError for weights that do not exist, CheckpointError for a file that is missing, broken, hostile or
    does not fit. Each begins with `where`.
    """
    return _match_and_load(model, backbone, head_path, _open_weights(backbone, location, reporter), location, reporter)


def read_preprocessing(backbone: Backbone, location: str, reporter: Reporter) -> Preprocessing:
    """What the weights were evaluated with, after a download if need be; as `default_preprocessing` where they do not
    say. Raises as `load_weights` does."""
    return _choose_preprocessing(backbone, _open_weights(backbone, location, reporter), location)


@dataclass(frozen=True)
class _Opened:
    file: WeightsFile
    state_dict_file: StateDictFile


def _open_weights(backbone: Backbone, location: str, reporter: Reporter) -> _Opened | None:
    if backbone.weights == "none":
        return None
    file = resolve_weights(backbone, location, reporter)
    return _Opened(file, read_state_dict(file, backbone.name, location))


def _choose_preprocessing(backbone: Backbone, opened: _Opened | None, location: str) -> Preprocessing:
    if opened and opened.state_dict_file.base_checkpoint:
        return opened.state_dict_file.base_checkpoint.preprocessing
    return default_preprocessing(backbone.name, backbone.weights, location)


def _match_and_load(
    model: nn.Module, backbone: Backbone, head: str, opened: _Opened | None, location: str, reporter: Reporter
) -> WeightsInfo:
    if opened is None:
        return WeightsInfo("none", None)
    state_dict_file, source = opened.state_dict_file, opened.file.source
    model_state = dict(model.state_dict())
    context = MatchContext(
        backbone.name, model_state, head, state_dict_file.tensors, state_dict_file.architecture, f"{location}: {source}"
    )
    if backbone.match == "position":
        match, other, messages = _match_by_position(context, model)
    else:
        match, other, messages = _match_by_name(context, model)
    loadable = {name: tensor for name, tensor in match.tensors.items() if tensor.shape == model_state[name].shape}
    mismatched = {name: tensor for name, tensor in match.tensors.items() if name not in loadable} | match.head_only
    skipped_head = [f"{name} {format_shape(tensor)}" for name, tensor in mismatched.items()]
    _check_values(loadable, model_state, context.location)
    copy_state_dict(model, loadable)
    if state_dict_file.other_keys:
        messages.insert(0, f"{state_dict_file.key} is loaded and not {' or '.join(state_dict_file.other_keys)}")
    if other:
        messages.append(f"left out, since they are no part of the network: {format_list(other, 6)}")
    if skipped_head:
        messages.append(f"left out, since the head is another: {', '.join(skipped_head)}")
    for message in messages:
        reporter.info(f"{source}: {message}")
    return WeightsInfo(source, opened.file.sha256, len(loadable), (*other, *skipped_head))


def _check_values(tensors: StateDict, model_state: StateDict, location: str) -> None:
    """Refuse what would make a network of its shapes that computes nothing: codes in place of numbers, and nan."""
    for name, tensor in tensors.items():
        target = model_state[name]
        if target.is_floating_point() and not tensor.is_floating_point():
            dtypes = f"{tensor.dtype} and the network {target.dtype}".replace("torch.", "")
            raise CheckpointError(f"{location} has {name} as {dtypes}; save its values as floating-point numbers")
        if not tensor.to(target.dtype).isfinite().all() and target.isfinite().all():
            raise CheckpointError(
                f"{location} has values in {name} that are not finite; get it anew, or take weights from before its "
                "training failed"
            )


def _match_by_position(context: MatchContext, model: nn.Module) -> tuple[Match, list[str], list[str]]:
    match = match_by_position(context.file_state, context.model_state, context.head)
    if match is None:
        raise position_mismatch_error(context)
    match, messages = _resize_pos_embed(match, context, model)
    if match.find_shape_mismatches(context.model_state, context.head):
        raise position_mismatch_error(context)
    return match, [], messages


def _match_by_name(context: MatchContext, model: nn.Module) -> tuple[Match, list[str], list[str]]:
    """The fit, what is no part of the network, and what there is to tell."""
    stripped = strip_prefix(context.file_state, context.model_state, context.head)
    messages = _describe_prefix_choice(stripped, context)
    raw_state = context.file_state
    context = dataclasses.replace(context, file_state=stripped.tensors)
    match = match_by_name(stripped.tensors, context.model_state, context.head)
    if isinstance(match, Mismatch) and not match.missing:
        stripped = _separate_aux_heads(stripped, context.model)
        match = match_by_name(stripped.tensors, context.model_state, context.head)
    if isinstance(match, Mismatch):
        match, more_messages = _match_remapped(context, model, raw_state)
    else:
        match, more_messages = _resize_pos_embed(match, context, model)
    if match.find_shape_mismatches(context.model_state, context.head):
        raise name_mismatch_error(context)
    other = [f"{name} {format_shape(tensor)}" for name, tensor in stripped.other.items()]
    return match, other, messages + more_messages


def _describe_prefix_choice(stripped: StrippedStateDict, context: MatchContext) -> list[str]:
    if not stripped.other_prefixes:
        return []
    others = " and ".join(f"{prefix}*" for prefix in stripped.other_prefixes)
    if not stripped.is_ema:
        raise CheckpointError(
            f"{context.location} holds {context.model} {len(stripped.other_prefixes) + 1} times, as {stripped.prefix}* and {others}; save one "
            "of them in a file of its own"
        )
    return [f"{stripped.prefix}* is loaded and not {others}"]


def _separate_aux_heads(stripped: StrippedStateDict, model: str) -> StrippedStateDict:
    """The copy without auxiliary heads, which take part in training alone and are no part of our network."""
    aux_heads = list_aux_heads(model)
    other = {
        name: tensor for name, tensor in stripped.tensors.items() if any(is_inside(name, part) for part in aux_heads)
    }
    rest = {name: tensor for name, tensor in stripped.tensors.items() if name not in other}
    return dataclasses.replace(stripped, tensors=rest, other=stripped.other | other)


def _match_remapped(context: MatchContext, model: nn.Module, raw_state: StateDict) -> tuple[Match, list[str]]:
    """Other names for a file of another program, by timm's own means; they must then fit as if they had been there."""
    for file_state in (raw_state, context.file_state) if context.model.startswith(TIMM_PREFIX) else ():
        try:
            remapped = remap_keys(model, file_state)
        except PosEmbedResizeError as error:
            raise _pos_embed_error(context, error) from error
        match = match_by_name(remapped[0], context.model_state, context.head) if remapped else None
        if remapped and isinstance(match, Match) and not match.find_shape_mismatches(context.model_state, context.head):
            return match, [f"names are translated by timm's function for {type(model).__name__}", *remapped[1]]
    raise name_mismatch_error(context)


def _resize_pos_embed(match: Match, context: MatchContext, model: nn.Module) -> tuple[Match, list[str]]:
    wrong_shapes = match.find_shape_mismatches(context.model_state, context.head)
    try:
        resized, messages = resize_pos_embed(model, match.tensors, wrong_shapes)
    except PosEmbedResizeError as error:
        raise _pos_embed_error(context, error) from error
    return dataclasses.replace(match, tensors=match.tensors | resized), messages


def _pos_embed_error(context: MatchContext, error: PosEmbedResizeError) -> CheckpointError:
    return CheckpointError(
        f"{context.location} does not fit {context.model} at this image size: {error}; set data.image_size to that of the "
        "weights"
    )
