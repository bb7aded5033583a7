"""A stage with a solver, from the recipe to checkpoints that a training goes on from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from ftcli.errors import RecipeError
from ftcli.inference.classifier import Classifier
from ftcli.recipe.schema import SolvedStage
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training.reading import find_layer
from tests.conftest import RECIPE, Ftcli, read_npz
from tests.training.test_resume import assert_same


@pytest.fixture
def solved(workplace: Path, photo_folder: Path) -> Path:
    """The workplace, whose recipe solves its first stage."""
    text = RECIPE.format(root=photo_folder).replace("hidden: [16]", "hidden: []")
    trained = "epochs: 2\n    optimizer: {name: sgd, lr: 0.05}"
    assert trained in text
    (workplace / "r.yaml").write_text(text.replace(trained, "fit: logistic_regression"))
    return workplace


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.covers("stages.fit")
def test_a_head_is_solved_and_the_next_stage_goes_on_from_it(ftcli: Ftcli, solved: Path) -> None:
    outcome = ftcli("train", "r.yaml", "--json")
    assert outcome.code == 0
    head, whole = outcome.json["stages"]
    rows = read_rows(solved / "runs/photos")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("head", 0), ("head", 1), *(("all", n) for n in range(3))]
    start, after, following = rows[:3]
    assert (start["train_loss"], start["lr"], after["lr"], after["images_per_second"]) == (None, None, None, None)
    assert after["val_loss"] < start["val_loss"]
    assert (head["epochs"], head["start_val_loss"], head["val_loss"]) == (1, start["val_loss"], after["val_loss"])
    assert head["trainable_parameters"] == 1024 * 2 + 2
    assert following["val_loss"] == pytest.approx(after["val_loss"], rel=1e-4)
    assert whole["start_val_loss"] == following["val_loss"]
    checkpoint = read_checkpoint(solved / "runs/photos/stages/head.pt")
    assert (checkpoint.stage, checkpoint.epoch) == ("head", 1)
    measured = ftcli("evaluate", "runs/photos/stages/head.pt", "--split", "val", "--json").json
    assert measured["loss"] == pytest.approx(after["val_loss"], rel=1e-4)
    assert measured["accuracy"] == after["val_accuracy"]
    measured = ftcli("evaluate", "runs/photos/stages/head.pt", "--split", "train", "--json").json
    assert measured["loss"] == pytest.approx(after["train_loss"], rel=1e-4)
    assert measured["accuracy"] == after["train_accuracy"]


def test_the_solved_head_is_scikit_learns_and_weights_count(ftcli: Ftcli, solved: Path, photo_folder: Path) -> None:
    paths = sorted(path for path in (photo_folder / "train").glob("*/*.jpg"))
    with (solved / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "weight"])
        for number, path in enumerate(paths):
            writer.writerow([path, path.parent.name, ("train", "train", "val")[number % 3], 1 + 5 * (number % 4 == 0)])
    assert ftcli("train", "r.yaml", "--stage", "head", "--set", "data.root=list.csv", "--out", "run").code == 0
    head = "run/stages/head.pt"
    assert ftcli("extract", head, "--out", "f.npz").code == 0
    features = read_npz("f.npz")
    own = features["splits"] == "train"
    weights = np.array([1.0 + 5 * (paths.index(Path(path)) % 4 == 0) for path in features["paths"][own]])
    values, labels = features["features"][own].astype(np.float64), features["labels"][own]
    scaler = StandardScaler().fit(values, sample_weight=weights)
    state = read_checkpoint(Path(head)).state
    found = torch.from_numpy(values) @ state["fc.1.weight"].double().T + state["fc.1.bias"].double()
    for used, close in ((weights / weights.mean(), True), (np.ones(len(weights)), False)):
        nearest = min(
            np.abs(
                LogisticRegression(C=10.0**power, tol=1e-8, max_iter=10_000)
                .fit(scaler.transform(values), labels, sample_weight=used)
                .predict_proba(scaler.transform(values))
                - found.softmax(1).numpy()
            ).max()
            for power in range(-5, 3)
        )
        assert bool(nearest < 1e-3) is close


KILLS = [
    ("SIGTERM", "advance", "head: frozen part, train", 16),
    ("SIGKILL", "epoch", "head", 0),
    ("SIGKILL", "epoch", "head", 1),
]


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_as_in_one_go(
    solved: Path, training: Callable[..., int], kill_by: Callable[..., Any]
) -> None:
    arguments = ("train", "r.yaml", "--stage", "head", "--set", "seed=7", "--out")
    for number, kill in enumerate(KILLS):  # nothing is kept of a network of this seed when the first is killed
        run = solved / f"run{number}"
        assert training(solved, *arguments, run.name, kill=kill_by(*kill)) == (-9 if kill[0] == "SIGKILL" else 143)
        resumed = (run / "last.pt").exists()
        assert training(solved, *(("train", "--resume", run / "last.pt") if resumed else (*arguments, run.name))) == 0
        assert [row["epoch"] for row in read_rows(run)] == [0, 1]
    assert training(solved, *arguments, "whole") == 0
    for name in ("last.pt", "best_loss.pt", "stages/head.pt"):
        for number in range(len(KILLS)):
            assert_same(read_checkpoint(solved / "whole" / name), read_checkpoint(solved / f"run{number}" / name))


def test_what_cannot_be_solved_is_told_before_anything_is_computed(ftcli: Ftcli, solved: Path) -> None:
    text = (solved / "r.yaml").read_text()
    told = ftcli("train", "r.yaml", "--set", "head.hidden=[8, 4]")
    assert (told.code, told.faults) == (
        2,
        [
            "--set head.hidden=[8, 4]: head.hidden: [8, 4] puts hidden layers in the head, and a head is solved as a "
            "single linear layer (r.yaml:14:13: stages.head.fit); set head.hidden: [], or give the stage epochs "
            "and an optimizer instead of a solver"
        ],
    )
    told = ftcli("train", "r.yaml", "--set", "backbone.name=squeezenet1_1")
    assert (told.code, told.faults) == (
        2,
        [
            "r.yaml:14:13: stages.head.fit: a head is solved as a single linear layer that reads a vector, and that "
            "of squeezenet1_1, classifier.1, does not (Conv2d); give the stage epochs and an optimizer instead of a "
            "solver, or choose another model"
        ],
    )
    assert not (solved / "runs").exists()
    assert text.splitlines()[13] == "    fit: logistic_regression"


def test_a_network_that_goes_on_behind_its_head_is_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.mean((2, 3)))
            return 2 * logits

    preprocessing = Preprocessing(8, 8, "squash", "bilinear", (0,) * 3, (1,) * 3)
    classifier = Classifier.place(Doubled(), preprocessing, ("a", "b"), torch.device("cpu"), "float32")
    with pytest.raises(RecipeError) as caught:
        find_layer(classifier, "head", "stage head, fit")
    assert str(caught.value) == (
        "stage head, fit: the network computes on what its head, head, gives, so the head cannot be solved; give "
        "the stage epochs and an optimizer instead of a solver"
    )


def test_without_room_in_the_cache_the_same_head_comes_from_the_images(
    ftcli: Ftcli, solved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "r.yaml", "--stage", "head", "--out")
    assert ftcli(*arguments, "kept").code == 0
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli(*arguments, "not-kept").code == 0
    for name in ("last.pt", "best_loss.pt", "stages/head.pt"):
        assert_same(*(read_checkpoint(solved / run / name) for run in ("kept", "not-kept")))


def test_what_others_use_makes_no_room_and_the_head_is_solved_from_the_images(
    ftcli: Ftcli, solved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ftcli.features.cache.make_room", lambda _needed: False)
    outcome = ftcli("train", "r.yaml", "--stage", "head", "--out", "run")
    assert outcome.code == 0, outcome.err
    told = "head: frozen part, train: the cache has no room for what the network gives, so it is computed without it"
    assert told in outcome.err.splitlines()


@pytest.mark.covers("stages.fit")
def test_a_recipe_with_a_solver_is_inspected(ftcli: Ftcli, solved: Path) -> None:
    stages = ftcli("inspect", "r.yaml", "--json").json["stages"]
    assert [stage["name"] for stage in stages] == ["head", "all"]
    assert stages[0]["trainable"] == 1024 * 2 + 2
    assert SolvedStage.model_fields.keys() == {"name", "freeze", "solver"}
