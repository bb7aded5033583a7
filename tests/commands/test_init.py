"""Tests of `ftcli init`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Ftcli


@pytest.mark.slow
def test_init_recipe_trains(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    outcome = ftcli("init", photo_folder, "--name", "drafted", "--backbone", "shufflenet_v2_x0_5")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("# ftcli train recipe.yaml\n#\n# 52 images of 2 classes: 'china', 'flower'. ")
    Path("recipe.yaml").write_text(outcome.out)
    short = [f"--set=stages.{stage}.epochs=1" for stage in ("head", "all")]
    trained = ftcli("train", "recipe.yaml", "--set=backbone.weights=none", "--set=data.num_workers=0", *short, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["run"] == str(work_dir / "runs/drafted")
    assert trained.json["test"]["images"] == 12


def test_init_writes_file_and_json(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    result = ftcli("init", photo_folder, "--out", "a b.yaml", "--json").json
    assert result["recipe"] == Path("a b.yaml").read_text()
    assert result["recipe"].startswith("# ftcli train 'a b.yaml'\n")
    assert {key: result[key] for key in ("images", "classes", "width", "height", "grey", "broken", "backbone")} == {
        "images": 52,
        "classes": ["china", "flower"],
        "width": 64,
        "height": 48,
        "grey": 0,
        "broken": [],
        "backbone": "resnet18",
    }
    assert result["splits"]["test"] == {"china": 6, "flower": 6}
    assert result["out"] == str(work_dir / "a b.yaml")
    again = ftcli("init", photo_folder, "--out", "a b.yaml")
    assert (again.code, again.out) == (2, "")
    assert again.errors == ["--out: a b.yaml already exists; give another path, or remove it"]
    other = ftcli("init", photo_folder, "--out", "other.yaml")
    assert other.out == "recipe: other.yaml\nnext: ftcli train other.yaml\n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none"], 3, "init: none does not exist; give a folder with train/<class>/, or with one folder a class"),
        (["empty"], 3, "init: empty has no class folders; put the images of each class into a folder of its own"),
        (["one"], 3, "init: one has only one class, 'a'; add another"),
        (["two", "--backbone", "resnet181"], 2, "--backbone: unknown model 'resnet181'; did you mean 'resnet18' "),
        (["two", "--device", "gpu"], 2, "--device: 'gpu' is not a device; give auto, cpu, cuda, cuda:1 or mps"),
        (
            ["two", "--out", "no/r.yaml"],
            1,
            "no/r.yaml: cannot be written (No such file or directory); ",
        ),
    ],
)
def test_init_reports_errors(work_dir: Path, ftcli: Ftcli, arguments: list[str], code: int, sentence: str) -> None:
    for folder in ("empty", "one/a", "two/a", "two/b"):
        Path(folder).mkdir(parents=True)
        for number in range(0 if folder == "empty" else 5):
            Image.new("RGB", (40, 40)).save(Path(folder) / f"{number}.png")
    outcome = ftcli("init", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    (message,) = outcome.errors
    assert message.startswith(sentence)
    assert json.dumps(sorted(path.name for path in Path().glob("*.yaml"))) == '["r.yaml"]'
