"""Create the models of torchvision and timm."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterable, Iterator
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

from ftcli.errors import RecipeError, first_line, install_hint, suggest
from ftcli.models.pretrained_cfg import TIMM_PREFIX, get_default_weights, list_pretrained_weights
from ftcli.models.summary import FORWARD_ERRORS, ModelSummary, UnsupportedImageSizeError, summarize
from ftcli.recipe.schema import Recipe
from ftcli.runtime import derive_seed

_SIZE_MULTIPLES = (1, 8, 14, 16, 28, 32, 64, 128)
"""Supported image sizes are multiples of a network's patches, windows and strides, so the search for a near size tries
multiples of these numbers and of the size of the model's own weights."""


def list_torchvision_models() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_timm_models() -> tuple[str, ...]:
    """Return the names of timm's models as `timm/<name>`, empty without timm. Imports timm, which is slow."""
    if importlib.util.find_spec("timm") is None:
        return ()
    from timm.models import list_models as list_timm

    return tuple(f"{TIMM_PREFIX}{name}" for name in list_timm())


def check_model(name: str, location: str) -> None:
    """Raise RecipeError unless torchvision or timm has a model of this name."""
    known = list_torchvision_models()
    if name.startswith(TIMM_PREFIX):
        if importlib.util.find_spec("timm") is None:
            raise RecipeError(f"{location}: {name!r} needs the package timm; {install_hint('timm')}")
        known = list_timm_models()
    if name not in known:
        raise RecipeError(f"{location}: unknown model {name!r}; {suggest(name, known)}")


def create_model(
    name: str, meta: bool = False, image_size: int | None = None, location: str = "data.image_size"
) -> nn.Module:
    """Return a network with random weights and its original head, in eval mode, that returns logits as a tensor.

    Weights come from torch's global random state. With `meta` all tensors are on the meta device: they take no memory
    and no random numbers. Networks of a fixed image size (ViT, MaxViT, most transformers of timm) are created for
    `image_size`. Auxiliary heads, which only training uses, are removed.

    Raises UnsupportedImageSizeError for a size that the network does not support, else RecipeError.
    """
    model_kwargs = _make_image_size_kwargs(name, image_size)
    try:
        model = _construct(name, meta, model_kwargs)
    except FORWARD_ERRORS as error:
        if not model_kwargs:
            raise RecipeError(
                f"{location}: {name} cannot be created ({first_line(error)}); choose another model"
            ) from error
        raise UnsupportedImageSizeError(
            f"{location}: {name} cannot be created for images of {image_size} x {image_size} pixels "
            f"({first_line(error)})"
        ) from error
    if not _declares_tensor_output(model):
        _remove_aux_heads(model, image_size or get_native_image_size(name), location)
    return model.eval()


def build_model(recipe: Recipe, image_size: int) -> nn.Module:
    """Return the recipe's network with its original head and weights initialized from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "backbone"))
        return create_model(recipe.backbone.name, image_size=image_size)


def create_and_summarize(name: str, image_size: int, location: str) -> tuple[nn.Module, ModelSummary]:
    """Return a network on the meta device with its summary for images of this size.

    Raises RecipeError with the nearest supported sizes if the network does not support this one.
    """
    try:
        model = create_model(name, meta=True, image_size=image_size, location=location)
        return model, summarize(model, image_size, location)
    except UnsupportedImageSizeError as error:
        sizes = " or ".join(str(size) for size in find_nearest_image_sizes(name, image_size))
        raise RecipeError(f"{error.problem}; choose {sizes or 'another model'}") from error


def find_nearest_image_sizes(name: str, image_size: int) -> tuple[int, ...]:
    """Return the nearest supported sizes below and above that were found; each may be missing."""
    default_size = get_default_weights(name).preprocessing.image_size
    model = None if has_fixed_image_size(name) else create_model(name, meta=True, image_size=default_size)
    multiples = {*_SIZE_MULTIPLES, default_size}
    below = {(image_size - 1) // step * step for step in multiples} - {0}
    above = {(image_size // step + 1) * step for step in multiples}
    supported = [_find_supported_size(name, model, sizes) for sizes in (sorted(below, reverse=True), sorted(above))]
    return tuple(size for size in supported if size is not None)


def _find_supported_size(name: str, model: nn.Module | None, sizes: Iterable[int]) -> int | None:
    for size in sizes:
        try:
            summarize(create_model(name, meta=True, image_size=size) if model is None else model, size)
        except RecipeError:
            continue
        return size
    return None


def has_fixed_image_size(name: str) -> bool:
    """Return whether the network is created for one image size and supports no other."""
    return bool(_make_image_size_kwargs(name, 1))


def get_native_image_size(name: str) -> int:
    """Return the image size in pixels that a network has by default."""
    if name.startswith(TIMM_PREFIX):
        return get_default_weights(name).preprocessing.image_size
    return min(entry.preprocessing.image_size for entry in list_pretrained_weights(name))  # torchvision's ViT default


def list_aux_heads(name: str) -> tuple[str, ...]:
    """Return the auxiliary heads that `create_model` removes: modules whose parameters eval mode does not use."""
    model = _construct(name, True, {})
    if _declares_tensor_output(model):
        return ()
    return _find_unused_modules(model, get_native_image_size(name), "backbone.name")


def _construct(name: str, meta: bool, model_kwargs: dict[str, Any]) -> nn.Module:
    with _init_on_meta() if meta else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of their own defaults
        if not name.startswith(TIMM_PREFIX):
            model: nn.Module = torchvision.models.get_model(name, weights=None, **model_kwargs)
            if hasattr(model, "transform_input"):  # the published GoogLeNet and Inception weights need it
                model.transform_input = True  # type: ignore[assignment]
            return model
        import timm

        num_classes = get_default_weights(name).library_entry.num_classes or 1000  # weights may have no head
        return timm.create_model(
            name.removeprefix(TIMM_PREFIX), pretrained=False, num_classes=num_classes, **model_kwargs
        )


class _SkipMetaInit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips in-place operations on meta tensors: weight initialization, which takes most of the time.

    An operation on meta and real tensors, as in a constructor that computes a shape with a forward pass, runs on the
    meta device.
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
    """Move every parameter and buffer to the meta device when a module registers it.

    Unlike `torch.device("meta")` this does not change other tensors that constructors compute with, as RegNet's does.
    """

    def move_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    def move_buffer(_module: nn.Module, _name: str, buffer: torch.Tensor | None) -> torch.Tensor | None:
        return buffer if buffer is None else buffer.to("meta")

    hooks = [
        register_module_parameter_registration_hook(move_parameter),  # type: ignore[arg-type]  # its result is used
        register_module_buffer_registration_hook(move_buffer),  # type: ignore[arg-type]
    ]
    try:
        with torch.random.fork_rng(devices=[]), _SkipMetaInit():  # type: ignore[no-untyped-call]
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _make_image_size_kwargs(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the constructor's arguments for an image size; empty for a network without a fixed image size."""
    if image_size is None:
        return {}
    if name.startswith(TIMM_PREFIX):
        return {"img_size": image_size} if get_default_weights(name).library_entry.fixed_input_size else {}
    model_type = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    accepted = inspect.signature(model_type.__init__).parameters
    sizes = {"image_size": image_size, "input_size": (image_size, image_size)}
    return {key: value for key, value in sizes.items() if key in accepted}


def _declares_tensor_output(model: nn.Module) -> bool:
    """Return whether `forward` is annotated to return a tensor, which saves a forward pass to find out."""
    return inspect.signature(type(model).forward).return_annotation is torch.Tensor


def _find_unused_modules(model: nn.Module, image_size: int, location: str) -> tuple[str, ...]:
    """Return the highest modules with parameters none of which eval mode uses."""
    used = summarize(model, image_size, location).first_use
    unused = [
        name
        for name, module in model.named_modules()
        if (parameter_names := [f"{name}.{inner}" for inner, _ in module.named_parameters()])
        and name
        and used.keys().isdisjoint(parameter_names)
    ]
    return tuple(name for name in unused if name.rpartition(".")[0] not in unused)


def _remove_aux_heads(model: nn.Module, image_size: int, location: str) -> None:
    unused = _find_unused_modules(model, image_size, location)
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, None)
    if unused and not summarize(model, image_size, location, training=True).returns_tensor:
        _disable_tuple_output(model, image_size)


def _disable_tuple_output(model: nn.Module, image_size: int) -> None:
    """Set the network's flag to False that makes train mode return more than the logits."""
    for name in [name for name, value in vars(model).items() if value is True and name != "training"]:
        setattr(model, name, False)
        if summarize(model, image_size, training=True).returns_tensor:
            return
        setattr(model, name, True)
