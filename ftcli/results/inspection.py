"""What there is to tell about networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.results.base import Result
from ftcli.results.estimation import StageEstimate
from ftcli.results.weights import LoadedWeights


@dataclass(frozen=True)
class Preprocessing(Result):
    """How any image becomes the network's input; it travels with the weights.

    `resize` is crop (shorter side to `resize_size`, then the centre of `image_size`), squash (both sides to
    `resize_size`, then the centre) or pad (longer side to `image_size`, the rest black). `mean` and `std` are for
    pixels from 0 to 1, red, green, blue.
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
    """One module: its name, class, output shape for one image (None where it is no single tensor), own and inner
    parameters, and how many of those train (in the last stage of a recipe)."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    depth: int


@dataclass(frozen=True)
class HeadInfo(Result):
    """Where the head sits and how wide it is."""

    path: str
    type: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class WeightsEntry(Result):
    """Weights that exist for a model: accuracy is top-1 in percent as their publisher gives it, None if unknown."""

    name: str
    accuracy: float | None
    parameters: int | None
    url: str | None
    default: bool


@dataclass(frozen=True)
class BoundaryTensor(Result):
    """A value that crosses from the frozen part to the live one, with its shape for one image."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StageSummary(Result):
    """What one stage trains and what it keeps. Counts are numbers of scalars; `frozen_layers` and `live_layers` are
    the highest modules that are wholly the one or the other; `cut` is empty where nothing is frozen, None where
    the network cannot be traced."""

    name: str
    trainable: int
    frozen: int
    trained_layers: tuple[str, ...]
    frozen_layers: tuple[str, ...]
    cut: tuple[BoundaryTensor, ...] | None


@dataclass(frozen=True)
class InspectResult(Result):
    """What `ftcli inspect` tells of a model, a recipe or a checkpoint."""

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
    """What is known of a model with its default weights, whose name is `weights`; None is unknown, or none there.

    `multiply_adds` are those of one image of `image_size` pixels a side, `accuracy` is top-1 on ImageNet in percent.
    """

    name: str
    parameters: int | None
    multiply_adds: int | None
    image_size: int
    accuracy: float | None
    weights: str | None


@dataclass(frozen=True)
class ModelList(Result):
    """The models that `ftcli inspect` lists: those that match `glob`, or all where it is None."""

    models: tuple[ModelEntry, ...]
    glob: str | None
