"""Load pretrained weights into a network, the whole backbone or nothing, and their preprocessing."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import torch
from torch import nn

from ftcli.errors import CheckpointError, format_list
from ftcli.models.checkpoint_file import read_base_checkpoint
from ftcli.models.factory import create_model, list_aux_heads
from ftcli.models.pretrained.pos_embed import PosEmbedResizeError, remap_keys, resize_pos_embed
from ftcli.models.pretrained.state_dict_matching import (
    Match,
    MatchContext,
    Mismatch,
    StrippedStateDict,
    make_name_mismatch_error,
    make_position_mismatch_error,
    match_by_name,
    match_by_position,
    strip_prefix,
)
from ftcli.models.pretrained.state_dict_reading import StateDictFile, read_state_dict
from ftcli.models.pretrained.weights_files import find_local_file, resolve_weights
from ftcli.models.pretrained_cfg import TIMM_PREFIX, find_pretrained_weights, get_default_weights, is_weights_name
from ftcli.models.state_dict import StateDict, copy_state_dict, format_shape, is_inside
from ftcli.models.summary import find_head, summarize
from ftcli.recipe.schema import Backbone, Data, Normalization
from ftcli.results import Preprocessing, Reporter
from ftcli.runtime import derive_seed

logger = logging.getLogger(__name__)

_MAX_LISTED_TENSORS = 6


@dataclass(frozen=True)
class WeightsInfo:
    """The source of a network's weights (none, a URL, or the recipe's `weights`) and the SHA-256 of their file.

    `num_loaded` counts the file's loaded tensors; `skipped` lists the others with their shapes.
    """

    source: str
    sha256: str | None
    num_loaded: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PretrainedModel:
    """A network with pretrained weights and its original head, whose module path is `head`."""

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
    """Return a known model in eval mode with a recipe's weights, for `image_size` or the image size of the weights.

    The original head gets the file's weights if they fit, else random ones, the same on every call. The preprocessing
    is that of the weights, scaled to the size. Raises as `load_weights`, and RecipeError for an unsupported size.
    """
    state_dict_file = _open_weights(backbone, location, reporter)
    preprocessing = _choose_preprocessing(backbone, state_dict_file, location)
    if image_size is not None:
        preprocessing = scale_preprocessing(preprocessing, image_size)
    size = preprocessing.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("pretrained"))
        model = create_model(backbone.name, image_size=size, location=size_location)
    head = find_head(model, summarize(model, size, size_location), location).path
    weights_info = _match_and_load(model, backbone, head, state_dict_file, location)
    return PretrainedModel(model, head, weights_info, preprocessing)


def load_weights(
    model: nn.Module, backbone: Backbone, head_path: str, location: str, reporter: Reporter
) -> WeightsInfo:
    """Load a recipe's weights into a network with its original head: all of the backbone or nothing.

    - match: name: after removing the names of wrappers (`module.`, `model.`, `_orig_mod.` and similar) every tensor of
      the backbone must match in name and shape, and none may be unexpected; tensors of other modules in the file are
      skipped. timm's own function remaps the names of other programs for timm's networks.
    - match: position: the file must have the network's number of tensors in the network's order, each of the same
      shape; names are ignored.

    In both, tensors of the head may be missing or another head's, which does not change them, and BatchNorm's batch
    counters may be missing. Position embeddings are resized to the image size. A message is logged for skipped
    tensors, chosen state dicts and changed tensors. Call it before the head is replaced: a new head of the same size
    would get the file's tensors.

    Raises RecipeError for unknown weights, CheckpointError for a file that is missing, corrupt, hostile or does not
    fit.
    """
    return _match_and_load(model, backbone, head_path, _open_weights(backbone, location, reporter), location)


def read_preprocessing(backbone: Backbone, location: str, reporter: Reporter) -> Preprocessing:
    """Return the preprocessing of a recipe's weights, downloading them if necessary; `default_preprocessing` if the
    file has none. Raises as `load_weights`."""
    return _choose_preprocessing(backbone, _open_weights(backbone, location, reporter), location)


def _open_weights(backbone: Backbone, location: str, reporter: Reporter) -> StateDictFile | None:
    if backbone.weights == "none":
        return None
    return read_state_dict(resolve_weights(backbone, location, reporter), backbone.name, location)


def _choose_preprocessing(backbone: Backbone, state_dict_file: StateDictFile | None, location: str) -> Preprocessing:
    if state_dict_file and state_dict_file.base_checkpoint:
        return state_dict_file.base_checkpoint.preprocessing
    return default_preprocessing(backbone.name, backbone.weights, location)


def _match_and_load(
    model: nn.Module, backbone: Backbone, head: str, state_dict_file: StateDictFile | None, location: str
) -> WeightsInfo:
    if state_dict_file is None:
        return WeightsInfo("none", None)
    source, model_state = state_dict_file.file.source, dict(model.state_dict())
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
        messages.insert(0, f"{state_dict_file.key} is loaded instead of {' and '.join(state_dict_file.other_keys)}")
    if other:
        messages.append(f"tensors outside the network are skipped: {format_list(other, _MAX_LISTED_TENSORS)}")
    if skipped_head:
        messages.append(f"tensors of another head are skipped: {', '.join(skipped_head)}")
    for message in messages:
        logger.info(f"{source}: {message}")
    return WeightsInfo(source, state_dict_file.file.sha256, len(loadable), (*other, *skipped_head))


def _check_values(tensors: StateDict, model_state: StateDict, location: str) -> None:
    """Raise CheckpointError for integer tensors, such as quantized ones, and for values that are not finite."""
    for name, tensor in tensors.items():
        target = model_state[name]
        if target.is_floating_point() and not tensor.is_floating_point():
            dtypes = f"{tensor.dtype} and the network as {target.dtype}".replace("torch.", "")
            raise CheckpointError(f"{location} has {name} as {dtypes}; save its values as floating-point numbers")
        if not tensor.to(target.dtype).isfinite().all() and target.isfinite().all():
            raise CheckpointError(
                f"{location} has non-finite values in {name}; get an intact copy of the file, or use weights from "
                "before training diverged"
            )


def _match_by_position(context: MatchContext, model: nn.Module) -> tuple[Match, list[str], list[str]]:
    """Return the match, the tensors outside the network (none) and messages."""
    match = match_by_position(context.file_state, context.model_state, context.head)
    if match is None:
        raise make_position_mismatch_error(context)
    match, messages = _resize_pos_embed(match, context, model)
    if match.find_shape_mismatches(context.model_state, context.head):
        raise make_position_mismatch_error(context)
    return match, [], messages


def _match_by_name(context: MatchContext, model: nn.Module) -> tuple[Match, list[str], list[str]]:
    """Return the match, the tensors outside the network and messages."""
    raw_state = context.file_state
    stripped = strip_prefix(raw_state, context.model_state, context.head)
    messages = _describe_prefix_choice(stripped, context)
    match = match_by_name(stripped.tensors, context.model_state, context.head)
    if isinstance(match, Mismatch) and match.unexpected:
        stripped = _separate_aux_heads(stripped, context.model)
        match = match_by_name(stripped.tensors, context.model_state, context.head)
    context = dataclasses.replace(context, file_state=stripped.tensors)
    if isinstance(match, Mismatch):
        match, more_messages = _match_remapped(context, match, model, raw_state)
    else:
        match, more_messages = _resize_pos_embed(match, context, model)
    if match.find_shape_mismatches(context.model_state, context.head):
        raise make_name_mismatch_error(context)
    other = [f"{name} {format_shape(tensor)}" for name, tensor in stripped.other.items()]
    return match, other, messages + more_messages


def _describe_prefix_choice(stripped: StrippedStateDict, context: MatchContext) -> list[str]:
    if not stripped.other_prefixes:
        return []
    others = " and ".join(f"{prefix}*" for prefix in stripped.other_prefixes)
    if not stripped.is_ema:
        raise CheckpointError(
            f"{context.location} contains {len(stripped.other_prefixes) + 1} copies of {context.model}, "
            f"{stripped.prefix}* and {others}; save one of them in a separate file"
        )
    return [f"{stripped.prefix}* is loaded instead of {others}"]


def _separate_aux_heads(stripped: StrippedStateDict, model: str) -> StrippedStateDict:
    """Move the tensors of auxiliary heads, which `create_model` removes, to `other`."""
    aux_heads = list_aux_heads(model)
    other = {
        name: tensor for name, tensor in stripped.tensors.items() if any(is_inside(name, path) for path in aux_heads)
    }
    remaining = {name: tensor for name, tensor in stripped.tensors.items() if name not in other}
    return dataclasses.replace(stripped, tensors=remaining, other=stripped.other | other)


def _match_remapped(
    context: MatchContext, mismatch: Mismatch, model: nn.Module, raw_state: StateDict
) -> tuple[Match, list[str]]:
    """Match after timm's function has remapped the names of another program's file."""
    for file_state in (raw_state, context.file_state) if context.model.startswith(TIMM_PREFIX) else ():
        try:
            remapped = remap_keys(model, file_state)
        except PosEmbedResizeError as error:
            raise _make_pos_embed_error(context, error) from error
        match = match_by_name(remapped[0], context.model_state, context.head) if remapped else None
        if remapped and isinstance(match, Match) and not match.find_shape_mismatches(context.model_state, context.head):
            return match, [f"names are remapped by timm's function for {type(model).__name__}", *remapped[1]]
    raise make_name_mismatch_error(context, mismatch)


def _resize_pos_embed(match: Match, context: MatchContext, model: nn.Module) -> tuple[Match, list[str]]:
    wrong_shapes = match.find_shape_mismatches(context.model_state, context.head)
    try:
        resized, messages = resize_pos_embed(model, match.tensors, wrong_shapes)
    except PosEmbedResizeError as error:
        raise _make_pos_embed_error(context, error) from error
    return dataclasses.replace(match, tensors=match.tensors | resized), messages


def _make_pos_embed_error(context: MatchContext, error: PosEmbedResizeError) -> CheckpointError:
    return CheckpointError(
        f"{context.location} does not fit {context.model} at this image size: {error}; set data.image_size to that of "
        "the weights"
    )


def default_preprocessing(name: str, weights: str, location: str = "backbone.weights") -> Preprocessing:
    """Return the preprocessing of published weights or an ftcli checkpoint, else that of the model's default weights.

    Downloads nothing. Raises RecipeError for unknown published weights, CheckpointError for a checkpoint that is
    corrupt or of another model.
    """
    if is_weights_name(weights):
        return find_pretrained_weights(name, weights, location).preprocessing
    path = find_local_file(weights)
    if path and (base_checkpoint := read_base_checkpoint(path, name, f"{location}: {weights}")):
        return base_checkpoint.preprocessing
    return get_default_weights(name).preprocessing


def adapt_preprocessing(preprocessing: Preprocessing, data: Data) -> Preprocessing:
    """Return the preprocessing of pretrained weights with a recipe's settings applied.

    The default `resize_size` is `image_size` for squash and pad, else it keeps its ratio to `image_size`.
    `normalize: dataset` does not change mean and std here: they are measured when a run starts.
    """
    adapted = scale_preprocessing(preprocessing, data.image_size or preprocessing.image_size)
    if data.resize is not None:
        resize_size = adapted.resize_size if data.resize == "crop" else adapted.image_size
        adapted = dataclasses.replace(adapted, resize=data.resize, resize_size=resize_size)
    if data.resize_size is not None:
        adapted = dataclasses.replace(adapted, resize_size=data.resize_size)
    if isinstance(data.normalize, Normalization):
        return dataclasses.replace(adapted, mean=data.normalize.mean, std=data.normalize.std)
    return adapted


def scale_preprocessing(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    """Return the preprocessing for another image size, with the same ratio of `resize_size` to `image_size`."""
    ratio = preprocessing.resize_size / preprocessing.image_size
    return dataclasses.replace(preprocessing, image_size=image_size, resize_size=round(image_size * ratio))
