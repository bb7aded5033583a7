"""`ftcli inspect`: models, recipes, checkpoints, at no cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Ftcli

CONFIGS = Path(__file__).parents[2] / "configs"


def test_resnet152(ftcli: Ftcli) -> None:
    told = ftcli("inspect", "resnet152", "--json").json
    assert told["name"] == "resnet152"
    assert told["parameters"] == told["trainable"] == 60_192_808
    assert told["head"] == {"path": "fc", "type": "Linear", "in_features": 2048, "out_features": 1000}
    layer4 = next(layer for layer in told["layers"] if layer["name"] == "layer4")
    assert layer4["output_shape"] == [2048, 7, 7]
    assert layer4["parameters"] == 14_964_736
    assert [(entry["name"], entry["accuracy"]) for entry in told["weights"]] == [
        ("IMAGENET1K_V1", 78.312),
        ("IMAGENET1K_V2", 82.284),
    ]
    assert told["preprocessing"]["image_size"] == 224
    assert "head: fc (Linear), 2048 -> 1000" in ftcli("inspect", "resnet152").out.splitlines()


def test_a_recipe_tells_what_each_stage_trains(ftcli: Ftcli) -> None:
    told = ftcli("inspect", CONFIGS / "two-layer-head.yaml", "--json").json
    head, whole = told["stages"]
    assert (head["name"], head["trainable"]) == ("head", 525_315)
    assert head["trained_layers"] == ["fc"]
    assert head["cut"] == [{"name": "flatten", "shape": [2048]}]
    assert whole["frozen"] == 0
    assert told["classes"] == ["bicycle", "car", "pedestrian"]


def test_a_checkpoint_tells_where_it_came_from(workplace: Path, ftcli: Ftcli) -> None:
    best = ftcli("train", "r.yaml", "--stage", "head", "--json").json["best_loss"]
    shutil.copy(best, workplace / "mine.pt")
    told = ftcli("inspect", "mine.pt", "--json").json
    assert told["classes"] == ["china", "flower"]
    assert told["checkpoint"]["stage"] == "head"
    assert told["checkpoint"]["weights"] == "none"
    assert told["head"]["out_features"] == 2


def test_without_an_argument_the_models(ftcli: Ftcli) -> None:
    models = ftcli("inspect", "--json").json["models"]
    assert "resnet152" in models
    assert "timm/efficientnet_lite0" in models
    assert sum(not name.startswith("timm/") for name in models) >= 80


def test_depth_lists_modules_within_modules(ftcli: Ftcli) -> None:
    names = [
        {layer["name"] for layer in ftcli("inspect", "resnet18", "--json", "--depth", n).json["layers"]} for n in "13"
    ]
    assert "layer1" in names[0]
    assert "layer1.0.conv1" in names[1] - names[0]


def test_a_recipe_without_data_or_classes_says_what_to_do(workplace: Path, ftcli: Ftcli) -> None:
    text = (workplace / "r.yaml").read_text()
    root = text.split("root: ")[1].split("\n")[0]
    (workplace / "r.yaml").write_text(text.replace(root, "nowhere"))
    outcome = ftcli("inspect", "r.yaml")
    assert outcome.code == 3
    assert outcome.faults == [
        "r.yaml:3:9: data.root: nowhere does not exist, so the classes are unknown; make the folder, or name them in "
        "data.classes"
    ]


@pytest.mark.parametrize("columns", ["40", "200"])
def test_nothing_is_folded_or_coloured_in_a_pipe(ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "")
    out = ftcli("inspect", "resnet152").out
    assert "https://download.pytorch.org/models/resnet152-f82ba261.pth" in out
    assert "\x1b" not in out
