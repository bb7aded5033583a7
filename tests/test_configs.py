"""Tests of the shipped recipes: each is valid, begins with its command, and trains if its data are installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ftcli.planning import StagePlan, plan_recipe
from ftcli.recipe.loading import read_recipe
from ftcli.recipe.schema import RandomHorizontalFlip, RandomResizedCrop
from tests.conftest import CONFIGS, Ftcli

RECIPE_NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_shipped_recipe_plans_and_names_command(name: str) -> None:
    plan = plan_recipe(read_recipe(CONFIGS / name))
    assert [stage.stage for stage in plan.stages] == list(plan.recipe.stages)
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first in (f"# ftcli train configs/{name}", f"# ftcli inspect configs/{name}")
    assert name == f"{plan.recipe.name}.yaml"


def _train_briefly(name: str, ftcli: Ftcli) -> None:
    """Train a shipped recipe for one epoch per stage on small images of a few solar cells."""
    recipe = Path(f"configs/{name}.yaml")
    short = [f"--set=stages.{stage.name}.epochs=1" for stage in read_recipe(recipe).recipe.stages]
    outcome = ftcli("train", recipe, *short, "--set=data.image_size=64", "--set=data.num_workers=0", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["test"]["images"] == sum(1 for _ in Path("data/solar-cells/test").rglob("*.png"))


@pytest.mark.slow
def test_solar_cells_recipe_trains(solar_cells_dir: Path, ftcli: Ftcli) -> None:
    _train_briefly("solar-cells", ftcli)


@pytest.mark.slow
def test_experiment_recipes_differ_only_in_freezing(solar_cells_dir: Path, ftcli: Ftcli) -> None:
    names = ("frozen", "unfrozen", "from-scratch")
    for name in names:
        _train_briefly(name, ftcli)
    outcome = ftcli("compare", *(f"runs/{name}" for name in names), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    settings = {row["key"]: row["values"] for row in outcome.json["settings"]}
    weights, digests = settings["backbone.weights"], settings["origin.weights_sha256"]
    assert settings == {
        "backbone.weights": [weights[0], weights[0], "none"],
        "backbone.match": ["position", "position", "name"],
        "stages.main.freeze": ["backbone", "none", "none"],
        "stages.main.batch_norm": ["frozen", "frozen", "train"],
        "stages.main.optimizer.lr": [0.003, 0.0003, 0.003],
        "origin.weights_sha256": [digests[0], digests[0], None],
    }
    assert [run["name"] for run in outcome.json["runs"]] == list(names)
    assert len(outcome.json["differences"]) == 3


def test_make_experiment_trains_and_resumes() -> None:
    output = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "experiment"],
        cwd=CONFIGS.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    loop, compare = output.splitlines()[-5:-1], output.splitlines()[-1]
    assert loop == [
        "for name in frozen unfrozen from-scratch; do \\",
        "\tif [ -e runs/$name/last.pt ]; then .venv/bin/ftcli train --resume runs/$name/last.pt || exit; \\",
        "\telse .venv/bin/ftcli train configs/$name.yaml || exit; fi; \\",
        "done",
    ]
    assert compare == (".venv/bin/ftcli compare runs/frozen runs/unfrozen runs/from-scratch --out runs/experiment.png")


def test_hotdog_recipe_matches_dive_into_deep_learning() -> None:
    plan = plan_recipe(read_recipe(CONFIGS / "hotdog.yaml"))
    preprocessing, data, (head, all_stage) = plan.preprocessing, plan.recipe.data, plan.stages
    assert (preprocessing.resize, preprocessing.resize_size, preprocessing.image_size) == ("squash", 256, 224)
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.augment == (
        RandomResizedCrop(name="random_resized_crop"),
        RandomHorizontalFlip(name="random_horizontal_flip"),
    )
    assert isinstance(all_stage, StagePlan)
    optimizer = all_stage.stage.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 5e-5, 1e-3)
    assert (data.batch_size, all_stage.stage.epochs, all_stage.stage.schedule.name) == (128, 5, "constant")
    assert {name for name, lr_mult in all_stage.lr_mults.items() if lr_mult == 10} == {"fc.weight", "fc.bias"}
    assert not all_stage.frozen_names.parameters
    assert head.stage.freeze == "backbone"
    assert (plan.recipe.head.hidden, plan.recipe.head.init) == ((), "xavier_uniform")


def test_data_download_makes_solar_cells(tmp_path: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = ftcli("data", "download", "solar-cells", "--json")
    assert outcome.code == 0
    assert outcome.json["images"] == 2624
    assert {split: sum(counts.values()) for split, counts in outcome.json["splits"].items()} == {
        "train": 1968,
        "test": 656,
    }
    assert sorted(os.listdir("data/solar-cells")) == ["SOURCE.txt", "test", "train"]  # noqa: PTH208 - names alone
    again = ftcli("data", "download", "solar-cells")
    assert again.code == 3
    assert again.errors == [
        "download: solar-cells: data/solar-cells exists and is not empty; remove it, or give another folder"
    ]
