"""What the runs that are compared have in common, and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class ComparedRun(Result):
    """A run and its results: the validation loss and accuracy of the checkpoint (None where training stopped
    before they were measured), the seconds and epochs of its training
    (None for a checkpoint that lies in no run's folder), and the accuracy on the images that all are evaluated on, with
    its 95 % Wilson interval, and the loss (None where there are none). `name` tells it from the others."""

    name: str
    run: Path
    checkpoint: Path
    epochs: int | None
    seconds: float | None
    val_loss: float | None
    val_accuracy: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    loss: float | None


@dataclass(frozen=True)
class ConfigDifference(Result):
    """A key of the recipe (or a fact such as the seed of torch) in which runs differ; `values` are in the order of the
    runs, None where a run's recipe has no such key."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class PairwiseTest(Result):
    """Two runs on the same images: how many `first` alone gets right and `second` alone, the difference of their
    accuracies with the 95 % interval of a paired bootstrap, the p value of McNemar's exact test, the same corrected for
    the number of pairs (Holm), whether that is below 0.05, and all of it in words."""

    first: str
    second: str
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p_value: float
    p_corrected: float
    significant: bool
    words: str


@dataclass(frozen=True)
class CompareResult(Result):
    """What `ftcli compare` returns. `settings` hold only what differs; `split`, `images` and `differences` are empty
    where the runs cannot be evaluated on the same images, and `why` then says why. `warnings` tell what makes figures
    unfit for a comparison: a training that has not ended or that carries on from another, other validation images, and
    tests on what a run was trained on."""

    runs: tuple[ComparedRun, ...]
    settings: tuple[ConfigDifference, ...]
    split: str | None
    images: int
    differences: tuple[PairwiseTest, ...]
    why: str | None
    picture: Path | None
    warnings: tuple[str, ...] = ()
