"""Tests of the setup of a run: workers and known datasets."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from ftcli.planning import load_dataset
from ftcli.recipe.loading import read_recipe
from ftcli.results import NullReporter, Progress
from ftcli.training.resume import TrainArgs
from ftcli.training.trainer import train


class ProcessCountReporter(NullReporter):
    """A reporter that counts the child processes at each progress report."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def update_progress(self, _progress: Progress) -> None:
        self.counts.append(len(multiprocessing.active_children()))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.covers("data.num_workers")
def test_train_starts_requested_workers(work_dir: Path, num_workers: int) -> None:
    recipe = read_recipe(
        work_dir / "r.yaml", (f"data.num_workers={num_workers}", "stages.head.epochs=1", "stages.head.cache=off")
    )
    reporter = ProcessCountReporter()
    train(TrainArgs(recipe=recipe, stage="head", device="cpu"), reporter)
    assert reporter.counts[0] == num_workers  # in the first validation; later training and test have workers too


@pytest.mark.slow
@pytest.mark.covers("data.download")
def test_load_dataset_builds_missing_known_dataset(work_dir: Path) -> None:
    recipe = read_recipe(work_dir / "r.yaml", ("data.root=data/cells", "data.download=solar-cells"))
    dataset = load_dataset(recipe, NullReporter())
    assert dataset.classes == ("defective", "functional")
    assert (work_dir / "data/cells/SOURCE.txt").exists()
