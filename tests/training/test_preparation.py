"""What a recipe asks of the preparation of a run."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from ftcli.planning import gather_images
from ftcli.recipe.loading import read_recipe
from ftcli.results import Progress, Silent
from ftcli.training.beginning import Order
from ftcli.training.run import train


class Counter(Silent):
    """A Reporter that counts the processes beside this one whenever work has moved on."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def advance(self, _progress: Progress) -> None:
        self.counts.append(len(multiprocessing.active_children()))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.covers("data.num_workers")
def test_images_are_loaded_by_as_many_processes_as_asked(workplace: Path, num_workers: int) -> None:
    recipe = read_recipe(
        workplace / "r.yaml", (f"data.num_workers={num_workers}", "stages.head.epochs=1", "stages.head.cache=off")
    )
    counter = Counter()
    train(Order(recipe=recipe, stage="head", device="cpu"), counter)
    assert counter.counts[0] == num_workers  # the first validation; later the training and the test have theirs too


@pytest.mark.slow
@pytest.mark.covers("data.download")
def test_a_known_data_set_is_made_where_its_folder_is_missing(workplace: Path) -> None:
    recipe = read_recipe(workplace / "r.yaml", ("data.root=data/cells", "data.download=solar-cells"))
    images = gather_images(recipe, Silent())
    assert images.classes == ("defective", "functional")
    assert (workplace / "data/cells/SOURCE.txt").exists()
