"""The shipped recipes: each is valid, begins with the command that runs it, and trains where its data are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftcli.planning import plan_recipe
from ftcli.recipe.loading import read_recipe
from ftcli.recipe.schema import RandomHorizontalFlip, RandomResizedCrop
from tests.conftest import CONFIGS, Ftcli

NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_its_network_and_begins_with_its_command(name: str) -> None:
    plan = plan_recipe(read_recipe(CONFIGS / name))
    assert [stage.stage for stage in plan.stages] == list(plan.recipe.stages)
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first in (f"# ftcli train configs/{name}", f"# ftcli inspect configs/{name}")
    assert name == f"{plan.recipe.name}.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["solar-cells", "from-scratch"])
def test_a_recipe_whose_data_are_here_trains_a_short_epoch(few_cells: Path, ftcli: Ftcli, name: str) -> None:
    recipe = few_cells / f"configs/{name}.yaml"
    short = [f"--set=stages.{stage.name}.epochs=1" for stage in read_recipe(recipe).recipe.stages]
    outcome = ftcli("train", recipe, *short, "--set=data.image_size=64", "--set=data.workers=0", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["test"]["images"] == sum(1 for _ in (few_cells / "data/solar-cells/test").rglob("*.png"))


def test_hotdog_trains_as_dive_into_deep_learning_does() -> None:
    plan = plan_recipe(read_recipe(CONFIGS / "hotdog.yaml"))
    pre, data, (head, whole) = plan.preprocessing, plan.recipe.data, plan.stages
    assert (pre.resize, pre.resize_size, pre.image_size) == ("squash", 256, 224)
    assert (pre.mean, pre.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.augment == (
        RandomResizedCrop(name="random_resized_crop"),
        RandomHorizontalFlip(name="random_horizontal_flip"),
    )
    optimizer = whole.stage.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 5e-5, 1e-3)
    assert (data.batch_size, whole.stage.epochs, whole.stage.schedule.name) == (128, 5, "constant")
    assert {name for name, rate in whole.rates.items() if rate == 10} == {"fc.weight", "fc.bias"}
    assert not whole.freezing.parameters
    assert head.stage.freeze == "backbone"
    assert (plan.recipe.head.hidden, plan.recipe.head.init) == ((), "xavier_uniform")


def test_the_demo_fetches_its_data_where_they_are_missing(
    tmp_path: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = ftcli("data", "fetch", "solar-cells", "--json")
    assert outcome.code == 0
    assert outcome.json["images"] == 2624
    assert {split: sum(counts.values()) for split, counts in outcome.json["splits"].items()} == {
        "train": 1968,
        "test": 656,
    }
    assert sorted(os.listdir("data/solar-cells")) == ["SOURCE.txt", "test", "train"]  # noqa: PTH208 - names alone
    again = ftcli("data", "fetch", "solar-cells")
    assert again.code == 3
    assert again.faults == ["data/solar-cells: is there already and not empty; remove it, or give another folder"]
