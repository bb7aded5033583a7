"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Result:
    """Base of everything that a command returns."""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types; paths are absolute text."""
        assert dataclasses.is_dataclass(self)
        plain: dict[str, Any] = _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Preprocessing(Result):
    """How any image becomes the network's input; it travels with the weights.

    `resize` is shorter (shorter side to `resize_size`, then the centre of `image_size`), squash (both sides to
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
    def from_dict(cls, plain: dict[str, Any]) -> Preprocessing:
        return cls(**{**plain, "mean": tuple(plain["mean"]), "std": tuple(plain["std"])})


@dataclass(frozen=True)
class Layer(Result):
    """One module: its name, class, output shape for one image (None where it is no single tensor), own and inner
    parameters, and how many of those train (in the last stage of a recipe)."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    depth: int


@dataclass(frozen=True)
class HeadPlace(Result):
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
class Crossing(Result):
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
    cut: tuple[Crossing, ...] | None


@dataclass(frozen=True)
class Inspection(Result):
    """What `ftcli inspect` tells of a model, a recipe or a checkpoint."""

    name: str
    parameters: int
    trainable: int
    multiply_adds: int
    head: HeadPlace
    layers: tuple[Layer, ...]
    weights: tuple[WeightsEntry, ...]
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    stages: tuple[StageSummary, ...] | None = None
    checkpoint: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelList(Result):
    """What `ftcli inspect` tells without an argument."""

    models: tuple[str, ...]


@dataclass(frozen=True)
class EpochRow(Result):
    """A line of metrics.jsonl. Losses are mean cross-entropies in nats, accuracies shares of 1; epoch 0 is the
    measurement before a stage's first step and has no training figures."""

    stage: str
    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    lr: float | None
    seconds: float
    images_per_second: float | None


@dataclass(frozen=True)
class StageResult(Result):
    """What a stage came to: its best epoch's validation figures, and what it cost."""

    name: str
    epochs: int
    start_val_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    trainable_parameters: int


@dataclass(frozen=True)
class TestResult(Result):
    """Figures of the best checkpoint on the test split."""

    __test__ = False  # the name is no pytest class

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class TrainResult(Result):
    """What `ftcli train` returns; `skipped` are the broken images that were left out, `next_command` is what to type
    next."""

    run: Path
    best_loss: Path
    stages: tuple[StageResult, ...]
    test: TestResult | None
    skipped: tuple[str, ...]
    next_command: str


@dataclass(frozen=True)
class ClassRow(Result):
    """Precision, recall and F1 of one class, shares of 1; `images` is how many truly belong to it."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake(Result):
    """An image that was given a wrong class, and how sure the network was."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation(Result):
    """What `ftcli evaluate` returns. `confusion[i][j]` counts images of class i that were given class j;
    `calibration` holds the expected calibration error over 15 equal bins (Guo et al., arXiv 1706.04599);
    `worst` are the most confident mistakes."""

    checkpoint: Path
    split: str
    images: int
    loss: float
    accuracy: float
    per_class: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    calibration: dict[str, float]
    worst: tuple[Mistake, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fetched(Result):
    """What `ftcli data fetch` made: image counts by split and class."""

    name: str
    root: Path
    images: int
    splits: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far counted work has come. `rate` is images a second, `details` short words such as a loss."""

    task: str
    done: int
    total: int
    rate: float | None = None
    details: str = ""


class Reporter(Protocol):
    """Through this the library tells what happens. It must return at once and never raise."""

    def say(self, text: str) -> None:
        """A sentence for the user: what was chosen, what comes next."""

    def warn(self, text: str) -> None:
        """A sentence that the user should act on, though work goes on."""

    def advance(self, progress: Progress) -> None:
        """Counted work has moved on; `done == total` ends it."""

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        """An epoch of a stage of `epochs` was measured; `best` tells that it is the run's lowest validation loss."""


class Silent:
    """A Reporter that keeps everything to itself."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def advance(self, progress: Progress) -> None:
        pass

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        pass


def tell_duration(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(1, whole)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
