"""The networks that a recipe may name, how they are built, and what their published weights expect of an image."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ftcli.errors import RecipeError, suggest
from ftcli.models.pretrained.checkpoint_file import read_base_checkpoint
from ftcli.models.pretrained.pretrained_cfg import (
    TIMM_PREFIX,
    find_pretrained_weights,
    is_weights_name,
    list_pretrained_weights,
)
from ftcli.models.pretrained.weights_files import find_local_file
from ftcli.models.summary import FORWARD_ERRORS, UnsupportedImageSizeError, first_line, summarize
from ftcli.recipe.schema import Data, Normalization
from ftcli.results import Preprocessing, WeightsEntry


def list_torchvision_models() -> tuple[str, ...]:
    """The names of torchvision's classifiers."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_timm_models() -> tuple[str, ...]:
    """The names of timm's models, as `timm/<name>`; empty where timm is not installed. Imports timm, which is slow."""
    if importlib.util.find_spec("timm") is None:
        return ()
    from timm.models import list_models as list_timm

    return tuple(f"{TIMM_PREFIX}{name}" for name in list_timm())


def check_model(name: str, location: str) -> None:
    """Raise RecipeError that begins with `where` if no such model is known here."""
    known = list_torchvision_models()
    if name.startswith(TIMM_PREFIX):
        if importlib.util.find_spec("timm") is None:
            raise RecipeError(f"{location}: {name!r} needs timm, which is not installed; pip install 'ftcli[timm]'")
        known = list_timm_models()
    if name not in known:
        raise RecipeError(f"{location}: no model is called {name!r}; {suggest(name, known)}")


def create_model(name: str, meta: bool, image_size: int | None = None, location: str = "data.image_size") -> nn.Module:
    """A network with random weights and its original classes, in eval mode, whose output is a plain tensor.

    The caller seeds torch. With `meta` every parameter and buffer is on the meta device: no memory is taken and no
    random number drawn. Networks made for one size of image (ViT, MaxViT, most of timm's transformers) are made for
    `image_size` where it is given. Auxiliary classifiers, which take part in training alone, are taken away.

    Raises RecipeError that begins with `where` if the network cannot be made, UnsupportedImageSizeError if not for `image_size`.
    """
    model_kwargs = _image_size_kwargs(name, image_size)
    try:
        network = _construct(name, meta, model_kwargs)
    except FORWARD_ERRORS as error:
        if not model_kwargs:
            raise RecipeError(
                f"{location}: {name} cannot be made ({first_line(error)}); choose another model"
            ) from error
        problem = (
            f"{location}: {name} cannot be made for images of {image_size} x {image_size} pixels ({first_line(error)})"
        )
        raise UnsupportedImageSizeError(problem, "give another size") from error
    if not _declares_tensor_output(network):
        _remove_aux_heads(network, image_size or native_image_size(name), location)
    return network.eval()


def has_fixed_image_size(name: str) -> bool:
    """Whether `create_model` makes the network for the size of image that it is given, and for no other."""
    return bool(_image_size_kwargs(name, 1))


def list_aux_heads(name: str) -> tuple[str, ...]:
    """The modules that `create_model` takes away: those with parameters that an eval pass never uses."""
    network = _construct(name, True, {})
    return (
        ()
        if _declares_tensor_output(network)
        else _find_unused_modules(network, native_image_size(name), "backbone.name")
    )


def list_weights(name: str) -> tuple[WeightsEntry, ...]:
    """The pretrained weights that exist for a model. timm tells neither accuracy nor size without a network."""
    return tuple(
        WeightsEntry(entry.name, entry.accuracy, entry.parameters, entry.url, entry.is_default)
        for entry in list_pretrained_weights(name)
        if entry.url is not None
    )


def default_preprocessing(name: str, weights: str, location: str = "backbone.weights") -> Preprocessing:
    """What the weights were evaluated with, as far as that is known here: a published name's, a checkpoint's own.

    For `none`, for other files and for addresses it is that of the model's default weights. Raises RecipeError that
    begins with `where` for a published name that the model does not have, CheckpointError for a checkpoint of ftcli
    that is damaged or of another model.
    """
    if is_weights_name(weights):
        return find_pretrained_weights(name, weights, location).preprocessing
    path = find_local_file(weights)
    if path and (base_checkpoint := read_base_checkpoint(path, name, f"{location}: {weights}")):
        return base_checkpoint.preprocessing
    return next(entry.preprocessing for entry in list_pretrained_weights(name) if entry.is_default)


def adapt_preprocessing(preprocessing: Preprocessing, data: Data) -> Preprocessing:
    """The weights' preprocessing with what a recipe says instead.

    Without `resize_size`, the side keeps its proportion to `image_size`, but where the recipe asks for squash or pad it
    is `image_size` itself. `normalize: dataset` leaves mean and std as they are: the caller measures them.
    """
    adapted = scale_preprocessing(preprocessing, data.image_size or preprocessing.image_size)
    if data.resize is not None:
        resized = adapted.resize_size if data.resize == "crop" else adapted.image_size
        adapted = dataclasses.replace(adapted, resize=data.resize, resize_size=resized)
    if data.resize_size is not None:
        adapted = dataclasses.replace(adapted, resize_size=data.resize_size)
    if isinstance(data.normalize, Normalization):
        return dataclasses.replace(adapted, mean=data.normalize.mean, std=data.normalize.std)
    return adapted


def scale_preprocessing(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    """The same preprocessing for another size; the side that an image is resized to keeps its proportion."""
    proportion = preprocessing.resize_size / preprocessing.image_size
    return dataclasses.replace(preprocessing, image_size=image_size, resize_size=round(image_size * proportion))


def _construct(name: str, meta: bool, model_kwargs: dict[str, Any]) -> nn.Module:
    with _init_on_meta() if meta else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' words about their own defaults are not for our users
        if not name.startswith(TIMM_PREFIX):
            network: nn.Module = torchvision.models.get_model(name, weights=None, **model_kwargs)
            if hasattr(network, "transform_input"):  # GoogLeNet's and Inception's weights were trained behind it
                network.transform_input = True  # type: ignore[assignment]
            return network
        import timm

        num_classes = _timm_cfg(name).num_classes or 1000  # weights without a head still get a classifier
        return timm.create_model(
            name.removeprefix(TIMM_PREFIX), pretrained=False, num_classes=num_classes, **model_kwargs
        )


class _SkipMetaInit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves out what would write values into tensors that have none: initialisation, which is most of the time.

    Where one operation reads tensors with and without values, as in a constructor that sends an image through a part
    of its network to learn a shape, none has values.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            if isinstance(args[0], torch.Tensor) and args[0].is_meta:
                return args[0]
        elif any(isinstance(value, torch.Tensor) and value.is_meta for value in tree_leaves((args, kwargs))):
            args = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args)
        return func(*args, **(kwargs or {}))


@contextmanager
def _init_on_meta() -> Iterator[None]:
    """Modules made within have their tensors on the meta device from the moment they are registered.

    Unlike `torch.device("meta")` this leaves alone the tensors that constructors compute with, as RegNet's do.
    """

    def move_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    def move_buffer(_module: nn.Module, _name: str, buffer: torch.Tensor | None) -> torch.Tensor | None:
        return buffer if buffer is None else buffer.to("meta")

    hooks = [
        register_module_parameter_registration_hook(move_parameter),  # type: ignore[arg-type]  # what it returns counts
        register_module_buffer_registration_hook(move_buffer),  # type: ignore[arg-type]
    ]
    try:
        with torch.random.fork_rng(devices=[]), _SkipMetaInit():  # type: ignore[no-untyped-call]
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _image_size_kwargs(name: str, image_size: int | None) -> dict[str, Any]:
    """How the constructor of a network that is made for one size is told that size; empty for any other network."""
    if image_size is None:
        return {}
    if name.startswith(TIMM_PREFIX):
        return {"img_size": image_size} if _timm_cfg(name).fixed_input_size else {}
    model_type = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    accepted = inspect.signature(model_type.__init__).parameters
    sizes = {"image_size": image_size, "input_size": (image_size, image_size)}
    return {key: value for key, value in sizes.items() if key in accepted}


def _timm_cfg(name: str) -> Any:
    return next(entry.library_entry for entry in list_pretrained_weights(name) if entry.is_default)


def native_image_size(name: str) -> int:
    """The side in pixels of the images that a network is made for where none is asked for."""
    if name.startswith(TIMM_PREFIX):
        return default_preprocessing(name, "none").image_size
    return min(
        entry.preprocessing.image_size for entry in list_pretrained_weights(name)
    )  # what a ViT without weights takes


def _declares_tensor_output(network: nn.Module) -> bool:
    """Whether the library declares that the network returns a tensor, so that no trial pass is needed to know."""
    return inspect.signature(type(network).forward).return_annotation is torch.Tensor


def _find_unused_modules(network: nn.Module, image_size: int, location: str) -> tuple[str, ...]:
    """The highest modules that have parameters, none of which an eval pass uses."""
    used = summarize(network, image_size, location).first_use
    unused = [
        name
        for name, module in network.named_modules()
        if (parameter_names := [f"{name}.{inner}" for inner, _ in module.named_parameters()])
        and name
        and used.keys().isdisjoint(parameter_names)
    ]
    return tuple(name for name in unused if name.rpartition(".")[0] not in unused)


def _remove_aux_heads(network: nn.Module, image_size: int, location: str) -> None:
    unused = _find_unused_modules(network, image_size, location)
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, None)
    if unused and not summarize(network, image_size, location, training=True).returns_tensor:
        _disable_tuple_output(network, image_size)


def _disable_tuple_output(network: nn.Module, image_size: int) -> None:
    """Set to False that switch of the network which makes training return more than the logits."""
    for name in [name for name, value in vars(network).items() if value is True and name != "training"]:
        setattr(network, name, False)
        if summarize(network, image_size, training=True).returns_tensor:
            return
        setattr(network, name, True)
