"""Pretrained weights into a network: every tensor of its backbone finds its place, or nothing is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from ftcli.errors import CheckpointError
from ftcli.models.anatomy import examine, find_head
from ftcli.models.embeddings import UnfitEmbeddings, resize_embeddings, translate_names
from ftcli.models.files import WeightsFile, locate_weights
from ftcli.models.fitting import Copy, Fit, Misfit, Tensors, find_copy, fit_names, fit_order, within
from ftcli.models.formats import Contents, read_contents
from ftcli.models.misfits import Pairing, explain_names, explain_order, list_first, tell_shape
from ftcli.models.published import TIMM
from ftcli.models.states import put_tensors
from ftcli.models.zoo import build_network, default_preprocessing, list_auxiliaries, scale_preprocessing
from ftcli.recipe.schema import Backbone
from ftcli.results import Preprocessing, Reporter
from ftcli.runtime import derive_seed


@dataclass(frozen=True)
class Origin:
    """Where a network's weights came from: none, an address, or what the recipe says; and its file's SHA-256.

    `loaded` is how many tensors of the file were loaded; `left_out` are the others that the network has no use for,
    each with its shape.
    """

    source: str
    sha256: str | None
    loaded: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretrained:
    """A network as its library has it, with its original head at the path `head`, and with pretrained weights."""

    model: nn.Module
    head: str
    origin: Origin
    preprocessing: Preprocessing


def load_pretrained(
    backbone: Backbone,
    where: str,
    reporter: Reporter,
    image_size: int | None = None,
    where_size: str = "data.image_size",
) -> Pretrained:
    """A network in eval mode with what `backbone` says, made for images of `image_size`, or of the weights' own size.

    The head is the network's original one, with the file's weights where they fit it and random ones otherwise, the
    same each time. The preprocessing is the weights', scaled to the size. The model's name must be known. Raises as
    `load_weights` does, and RecipeError that begins with `where_size` for a size that the network refuses.
    """
    opened = _open_weights(backbone, where, reporter)
    preprocessing = _choose_preprocessing(backbone, opened, where)
    if image_size is not None:
        preprocessing = scale_preprocessing(preprocessing, image_size)
    size = preprocessing.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("pretrained"))
        model = build_network(backbone.name, False, size, where_size)
    head = find_head(model, examine(model, size, where_size), where).path
    origin = _place_weights(model, backbone, head, opened, where, reporter)
    return Pretrained(model, head, origin, preprocessing)


def load_weights(model: nn.Module, backbone: Backbone, head_path: str, where: str, reporter: Reporter) -> Origin:
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
    return _place_weights(model, backbone, head_path, _open_weights(backbone, where, reporter), where, reporter)


def read_preprocessing(backbone: Backbone, where: str, reporter: Reporter) -> Preprocessing:
    """What the weights were evaluated with, after a download if need be; as `default_preprocessing` where they do not
    say. Raises as `load_weights` does."""
    return _choose_preprocessing(backbone, _open_weights(backbone, where, reporter), where)


@dataclass(frozen=True)
class _Opened:
    file: WeightsFile
    contents: Contents


def _open_weights(backbone: Backbone, where: str, reporter: Reporter) -> _Opened | None:
    if backbone.weights == "none":
        return None
    file = locate_weights(backbone, where, reporter)
    return _Opened(file, read_contents(file, backbone.name, where))


def _choose_preprocessing(backbone: Backbone, opened: _Opened | None, where: str) -> Preprocessing:
    if opened and opened.contents.ancestor:
        return opened.contents.ancestor.preprocessing
    return default_preprocessing(backbone.name, backbone.weights, where)


def _place_weights(
    model: nn.Module, backbone: Backbone, head: str, opened: _Opened | None, where: str, reporter: Reporter
) -> Origin:
    if opened is None:
        return Origin("none", None)
    contents, source = opened.contents, opened.file.source
    wanted = dict(model.state_dict())
    pair = Pairing(backbone.name, wanted, head, contents.tensors, contents.architecture, f"{where}: {source}")
    if backbone.match == "position":
        fit, apart, told = _fit_by_position(pair, model)
    else:
        fit, apart, told = _fit_by_name(pair, model)
    fitting = {name: tensor for name, tensor in fit.tensors.items() if tensor.shape == wanted[name].shape}
    other = {name: tensor for name, tensor in fit.tensors.items() if name not in fitting} | fit.spare
    left = [f"{name} {tell_shape(tensor)}" for name, tensor in other.items()]
    _check_values(fitting, wanted, pair.place)
    put_tensors(model, fitting)
    if contents.others:
        told.insert(0, f"{contents.taken} is loaded and not {' or '.join(contents.others)}")
    if apart:
        told.append(f"left out, since they are no part of the network: {list_first(apart, 6)}")
    if left:
        told.append(f"left out, since the head is another: {', '.join(left)}")
    for sentence in told:
        reporter.say(f"{source}: {sentence}")
    return Origin(source, opened.file.sha256, len(fitting), (*apart, *left))


def _check_values(tensors: Tensors, wanted: Tensors, place: str) -> None:
    """Refuse what would make a network of its shapes that computes nothing: codes in place of numbers, and nan."""
    for name, tensor in tensors.items():
        own = wanted[name]
        if own.is_floating_point() and not tensor.is_floating_point():
            kinds = f"{tensor.dtype} and the network {own.dtype}".replace("torch.", "")
            raise CheckpointError(f"{place} has {name} as {kinds}; save its values as floating-point numbers")
        if not tensor.to(own.dtype).isfinite().all() and own.isfinite().all():
            raise CheckpointError(
                f"{place} has values in {name} that are not finite; get it anew, or take weights from before its "
                "training failed"
            )


def _fit_by_position(pair: Pairing, model: nn.Module) -> tuple[Fit, list[str], list[str]]:
    fit = fit_order(pair.given, pair.wanted, pair.head)
    if fit is None:
        raise explain_order(pair)
    fit, told = _resize(fit, pair, model)
    if fit.find_misshapen(pair.wanted, pair.head):
        raise explain_order(pair)
    return fit, [], told


def _fit_by_name(pair: Pairing, model: nn.Module) -> tuple[Fit, list[str], list[str]]:
    """The fit, what is no part of the network, and what there is to tell."""
    copy = find_copy(pair.given, pair.wanted, pair.head)
    told = _tell_copy(copy, pair)
    unread = pair.given
    pair = dataclasses.replace(pair, given=copy.tensors)
    found = fit_names(copy.tensors, pair.wanted, pair.head)
    if isinstance(found, Misfit) and not found.missing:
        copy = _set_auxiliaries_apart(copy, pair.model)
        found = fit_names(copy.tensors, pair.wanted, pair.head)
    if isinstance(found, Misfit):
        found, changes = _translate(pair, model, unread)
    else:
        found, changes = _resize(found, pair, model)
    if found.find_misshapen(pair.wanted, pair.head):
        raise explain_names(pair)
    apart = [f"{name} {tell_shape(tensor)}" for name, tensor in copy.apart.items()]
    return found, apart, told + changes


def _tell_copy(copy: Copy, pair: Pairing) -> list[str]:
    if not copy.rivals:
        return []
    others = " and ".join(f"{prefix}*" for prefix in copy.rivals)
    if not copy.averaged:
        raise CheckpointError(
            f"{pair.place} holds {pair.model} {len(copy.rivals) + 1} times, as {copy.prefix}* and {others}; save one "
            "of them in a file of its own"
        )
    return [f"{copy.prefix}* is loaded and not {others}"]


def _set_auxiliaries_apart(copy: Copy, model: str) -> Copy:
    """The copy without auxiliary heads, which take part in training alone and are no part of our network."""
    parts = list_auxiliaries(model)
    apart = {name: tensor for name, tensor in copy.tensors.items() if any(within(name, part) for part in parts)}
    rest = {name: tensor for name, tensor in copy.tensors.items() if name not in apart}
    return dataclasses.replace(copy, tensors=rest, apart=copy.apart | apart)


def _translate(pair: Pairing, model: nn.Module, unread: Tensors) -> tuple[Fit, list[str]]:
    """Other names for a file of another program, by timm's own means; they must then fit as if they had been there."""
    for given in (unread, pair.given) if pair.model.startswith(TIMM) else ():
        try:
            translated = translate_names(model, given)
        except UnfitEmbeddings as error:
            raise _refuse_embeddings(pair, error) from error
        fit = fit_names(translated[0], pair.wanted, pair.head) if translated else None
        if translated and isinstance(fit, Fit) and not fit.find_misshapen(pair.wanted, pair.head):
            return fit, [f"names are translated by timm's function for {type(model).__name__}", *translated[1]]
    raise explain_names(pair)


def _resize(fit: Fit, pair: Pairing, model: nn.Module) -> tuple[Fit, list[str]]:
    misshapen = fit.find_misshapen(pair.wanted, pair.head)
    try:
        resized, told = resize_embeddings(model, fit.tensors, misshapen)
    except UnfitEmbeddings as error:
        raise _refuse_embeddings(pair, error) from error
    return dataclasses.replace(fit, tensors=fit.tensors | resized), told


def _refuse_embeddings(pair: Pairing, error: UnfitEmbeddings) -> CheckpointError:
    return CheckpointError(
        f"{pair.place} does not fit {pair.model} at this image size: {error}; set data.image_size to that of the "
        "weights"
    )
