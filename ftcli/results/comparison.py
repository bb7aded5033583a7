"""Results of `ftcli compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class ComparedRun(Result):
    """A run with its metrics. `name` is unique among the compared runs.

    `val_loss` and `val_accuracy` are those of the checkpoint, None if training stopped before they were measured.
    `seconds` and `epochs` of training are None for a checkpoint outside a run directory. `accuracy` with its 95% Wilson
    interval (`low`, `high`) and `loss` are measured on the common images, None if there are none.
    """

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
    """A recipe key, or another fact such as the torch version, that differs between runs. `values` are in the order of
    the runs, None where the recipe has no such key."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class PairwiseTest(Result):
    """A significance test of two runs on the same images.

    `only_first` and `only_second` count the images that only one of the runs classifies correctly. `difference` of the
    accuracies has the 95% interval of a paired bootstrap. `p_value` is from McNemar's exact test, `p_corrected` is
    Holm-corrected for the number of pairs, and `significant` if it is below 0.05. `words` is the test as a sentence.
    """

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
    """The result of `ftcli compare`.

    `settings` lists only settings that differ. If the runs cannot be evaluated on the same images, `split` is None,
    `images` 0, `differences` empty, and `why` the reason. `warnings` list what makes the metrics not comparable: a run
    that is unfinished or resumed from another, different validation images, or a test on training images.
    """

    runs: tuple[ComparedRun, ...]
    settings: tuple[ConfigDifference, ...]
    split: str | None
    images: int
    differences: tuple[PairwiseTest, ...]
    why: str | None
    picture: Path | None
    warnings: tuple[str, ...] = ()
