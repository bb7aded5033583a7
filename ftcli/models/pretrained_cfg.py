"""Read what torchvision and timm publish about pretrained weights: names, accuracies and preprocessing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torchvision

from ftcli.errors import RecipeError, suggest
from ftcli.results import Preprocessing, WeightsEntry

TIMM_PREFIX = "timm/"
"""The prefix of the names of timm's models."""

_RESIZE_BY_CROP_MODE = {"center": "crop", "squash": "squash", "border": "pad"}


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights as their library describes them. `library_entry` is the library's own object; `url` is None
    for an entry with preprocessing and without weights."""

    name: str
    accuracy: float | None
    parameters: int | None
    multiply_adds: int | None
    url: str | None
    is_default: bool
    preprocessing: Preprocessing
    library_entry: Any


def list_pretrained_weights(model: str) -> tuple[PretrainedWeights, ...]:
    """Return all entries of a known model, one of them the default. Makes no network request."""
    return _list_timm(model) if model.startswith(TIMM_PREFIX) else _list_torchvision(model)


def get_default_weights(model: str) -> PretrainedWeights:
    """Return the entry that the library recommends for a known model."""
    return next(entry for entry in list_pretrained_weights(model) if entry.is_default)


def list_downloadable_weights(model: str) -> tuple[WeightsEntry, ...]:
    """Return the weights that can be downloaded for a known model. timm publishes neither accuracies nor sizes."""
    return tuple(
        WeightsEntry(entry.name, entry.accuracy, entry.parameters, entry.url, entry.is_default)
        for entry in list_pretrained_weights(model)
        if entry.url is not None
    )


def find_pretrained_weights(model: str, weights: str, location: str) -> PretrainedWeights:
    """Return the downloadable weights of this name, or the default.

    Raises RecipeError for an unknown name or a model without pretrained weights.
    """
    downloadable = [entry for entry in list_pretrained_weights(model) if entry.url is not None]
    for entry in downloadable:
        if entry.name == weights or (entry.is_default and weights == "default"):
            return entry
    if not downloadable:
        raise RecipeError(f"{location}: {model} has no pretrained weights; set weights: none or give a file")
    hint = suggest(weights, ["default", "none", *(entry.name for entry in downloadable)])
    raise RecipeError(f"{location}: unknown weights {weights!r} of {model}; {hint}")


def is_weights_name(weights: str) -> bool:
    """Return whether a recipe's `weights` is a published name or `default`, not `none`, a file or a URL."""
    return weights != "none" and not any(char in weights for char in "/\\:.")


def _list_torchvision(model: str) -> tuple[PretrainedWeights, ...]:
    weights_enum = torchvision.models.get_model_weights(model)
    return tuple(
        PretrainedWeights(
            name=entry.name,
            accuracy=_read_accuracy(entry.meta),
            parameters=entry.meta["num_params"],
            multiply_adds=round(entry.meta["_ops"] * 1e9),
            url=entry.url,
            is_default=entry is weights_enum.DEFAULT,
            preprocessing=_read_transforms(entry.transforms()),
            library_entry=entry,
        )
        for entry in weights_enum
    )


def _read_accuracy(meta: dict[str, Any]) -> float | None:
    accuracy: float = meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return None if math.isnan(accuracy) else accuracy  # NaN for VGG-16's weights without a classifier


def _read_transforms(transforms: Any) -> Preprocessing:
    return Preprocessing(
        image_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        resize="crop",
        interpolation=transforms.interpolation.value,
        mean=_to_triple(transforms.mean),
        std=_to_triple(transforms.std),
    )


def _list_timm(model: str) -> tuple[PretrainedWeights, ...]:
    from timm.models import get_arch_pretrained_cfgs

    cfgs = get_arch_pretrained_cfgs(model.removeprefix(TIMM_PREFIX)).values()
    return tuple(_read_timm_cfg(cfg, is_default=index == 0) for index, cfg in enumerate(cfgs))


def _read_timm_cfg(cfg: Any, *, is_default: bool) -> PretrainedWeights:
    size = cfg.input_size[-1]
    url = cfg.url[0] if isinstance(cfg.url, tuple) else cfg.url
    return PretrainedWeights(
        name=cfg.tag or "pretrained",
        accuracy=None,
        parameters=None,
        multiply_adds=None,
        url=f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else url or None,
        is_default=is_default,
        preprocessing=Preprocessing(
            image_size=size,
            resize_size=size if cfg.crop_mode == "border" else math.floor(size / cfg.crop_pct),
            resize=_RESIZE_BY_CROP_MODE[cfg.crop_mode],
            interpolation=cfg.interpolation,
            mean=_to_triple(cfg.mean),
            std=_to_triple(cfg.std),
        ),
        library_entry=cfg,
    )


def _to_triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
