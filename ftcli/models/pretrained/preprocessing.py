"""Derive the preprocessing of pretrained weights and a recipe."""

from __future__ import annotations

import dataclasses

from ftcli.models.pretrained.checkpoint_file import read_base_checkpoint
from ftcli.models.pretrained.weights_files import find_local_file
from ftcli.models.pretrained_cfg import find_pretrained_weights, get_default_weights, is_weights_name
from ftcli.recipe.schema import Data, Normalization
from ftcli.results import Preprocessing


def default_preprocessing(name: str, weights: str, location: str = "backbone.weights") -> Preprocessing:
    """Return the preprocessing of published weights or an ftcli checkpoint, else that of the model's default weights.

    Downloads nothing. Raises RecipeError for unknown published weights, CheckpointError for a checkpoint that is
    damaged or of another model.
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
