"""Results of `ftcli inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.results.base import Result
from ftcli.results.training import StageEstimate


@dataclass(frozen=True)
class Preprocessing(Result):
    """The preprocessing of images for a network; it is saved with the weights.

    `resize` is crop (shorter side to `resize_size`, then the center of `image_size`), squash (both sides to
    `resize_size`, then the center) or pad (longer side to `image_size`, the rest black). `mean` and `std` are for
    pixels from 0 to 1 in RGB order.
    """

    image_size: int
    resize_size: int
    resize: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass(frozen=True)
class LayerInfo(Result):
    """A module. `output_shape` is for one image, None if the output is not a single tensor; `parameters` and
    `trainable` (in the last stage of a recipe) include submodules."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    depth: int


@dataclass(frozen=True)
class HeadInfo(Result):
    """The module path, type and width of the head."""

    path: str
    type: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class WeightsEntry(Result):
    """Available weights of a model. `accuracy` is top-1 in percent as published, None if unknown."""

    name: str
    accuracy: float | None
    parameters: int | None
    url: str | None
    default: bool


@dataclass(frozen=True)
class LoadedWeights(Result):
    """Weights loaded into a network: their source, the SHA-256 of the file, the number of tensors loaded, and the
    tensors that were skipped, each with its shape."""

    source: str
    sha256: str | None
    tensors: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class BoundaryTensorInfo(Result):
    """A tensor that the trained part of the network reads from the frozen part, with its shape for one image."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StageSummary(Result):
    """The trainable and frozen parts of a model in a stage.

    `trainable` and `frozen` count parameters. `trained_layers` and `frozen_layers` are the highest modules whose
    parameters are all trainable or all frozen, and the own parameters of modules with both. `cut` has the boundary
    tensors; it is empty without frozen parameters before the first trainable one, None if the model cannot be traced.
    """

    name: str
    trainable: int
    frozen: int
    trained_layers: tuple[str, ...]
    frozen_layers: tuple[str, ...]
    cut: tuple[BoundaryTensorInfo, ...] | None


@dataclass(frozen=True)
class InspectResult(Result):
    """The result of `ftcli inspect` for a model, recipe or checkpoint."""

    name: str
    parameters: int
    trainable: int
    multiply_adds: int
    head: HeadInfo
    layers: tuple[LayerInfo, ...]
    weights: tuple[WeightsEntry, ...]
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    stages: tuple[StageSummary, ...] | None = None
    checkpoint: dict[str, Any] | None = None
    loaded: LoadedWeights | None = None
    pictures: tuple[Path, ...] = ()
    estimate: tuple[StageEstimate, ...] | None = None


@dataclass(frozen=True)
class ModelEntry(Result):
    """A model with its default weights; None is unknown, or absent.

    `multiply_adds` are for one image of `image_size` pixels per side, `accuracy` is ImageNet top-1 in percent.
    """

    name: str
    parameters: int | None
    multiply_adds: int | None
    image_size: int
    accuracy: float | None
    weights: str | None


@dataclass(frozen=True)
class ModelListResult(Result):
    """The result of `ftcli inspect` for a list of models: those that match `glob`, all if it is None."""

    models: tuple[ModelEntry, ...]
    glob: str | None
