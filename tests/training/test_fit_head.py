"""Tests of head fitting, from the recipe to checkpoints from which training continues."""

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

from ftcli.caching.store import StoreWriter
from ftcli.errors import RecipeError
from ftcli.evaluation.classifier import Classifier
from ftcli.recipe.schema import HeadFitStage
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training.fit_head import find_head_layer
from tests.conftest import RECIPE, Ftcli, read_npz
from tests.training.test_resume import assert_same_checkpoint


@pytest.fixture
def head_fit_folder(work_dir: Path, photo_folder: Path) -> Path:
    """Return the work_dir, with a recipe whose first stage fits its head."""
    text = RECIPE.format(root=photo_folder).replace("hidden: [16]", "hidden: []")
    trained = "epochs: 2\n    optimizer: {name: sgd, lr: 0.05}"
    assert trained in text
    (work_dir / "r.yaml").write_text(text.replace(trained, "fit: logistic_regression"))
    return work_dir


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.covers("stages.fit")
def test_fit_head_stage_precedes_trained_stage(ftcli: Ftcli, head_fit_folder: Path) -> None:
    outcome = ftcli("train", "r.yaml", "--json")
    assert outcome.code == 0
    head, full = outcome.json["stages"]
    rows = read_rows(head_fit_folder / "runs/photos")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("head", 0), ("head", 1), *(("all", n) for n in range(3))]
    start, after, next_start = rows[:3]
    assert (start["train_loss"], start["lr"], after["lr"], after["images_per_second"]) == (None, None, None, None)
    assert after["val_loss"] < start["val_loss"]
    assert (head["epochs"], head["start_val_loss"], head["val_loss"]) == (1, start["val_loss"], after["val_loss"])
    assert head["trainable_parameters"] == 1024 * 2 + 2
    assert next_start["val_loss"] == pytest.approx(after["val_loss"], rel=1e-4)
    assert full["start_val_loss"] == next_start["val_loss"]
    checkpoint = read_checkpoint(head_fit_folder / "runs/photos/stages/head.pt")
    assert (checkpoint.stage, checkpoint.epoch) == ("head", 1)
    measured = ftcli("evaluate", "runs/photos/stages/head.pt", "--split", "val", "--json").json
    assert measured["loss"] == pytest.approx(after["val_loss"], rel=1e-4)
    assert measured["accuracy"] == after["val_accuracy"]
    measured = ftcli("evaluate", "runs/photos/stages/head.pt", "--split", "train", "--json").json
    assert measured["loss"] == pytest.approx(after["train_loss"], rel=1e-4)
    assert measured["accuracy"] == after["train_accuracy"]


def test_fit_head_matches_sklearn_with_sample_weights(ftcli: Ftcli, head_fit_folder: Path, photo_folder: Path) -> None:
    paths = sorted(path for path in (photo_folder / "train").glob("*/*.jpg"))
    with (head_fit_folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "weight"])
        for number, path in enumerate(paths):
            writer.writerow([path, path.parent.name, ("train", "train", "val")[number % 3], 1 + 5 * (number % 4 == 0)])
    assert ftcli("train", "r.yaml", "--stage", "head", "--set", "data.root=list.csv", "--out", "run").code == 0
    head = "run/stages/head.pt"
    assert ftcli("extract", head, "--out", "f.npz").code == 0
    features = read_npz("f.npz")
    is_train = features["splits"] == "train"
    weights = np.array([1.0 + 5 * (paths.index(Path(path)) % 4 == 0) for path in features["paths"][is_train]])
    values, labels = features["features"][is_train].astype(np.float64), features["labels"][is_train]
    scaler = StandardScaler().fit(values, sample_weight=weights)
    state = read_checkpoint(Path(head)).state
    logits = torch.from_numpy(values) @ state["fc.1.weight"].double().T + state["fc.1.bias"].double()
    for sample_weights, close in ((weights / weights.mean(), True), (np.ones(len(weights)), False)):
        nearest = min(
            np.abs(
                LogisticRegression(C=10.0**power, tol=1e-8, max_iter=10_000)
                .fit(scaler.transform(values), labels, sample_weight=sample_weights)
                .predict_proba(scaler.transform(values))
                - logits.softmax(1).numpy()
            ).max()
            for power in range(-5, 3)
        )
        assert bool(nearest < 1e-3) is close


KILLS = [
    ("SIGTERM", "update_progress", "head: feature extraction, train", 16),
    ("SIGKILL", "log_epoch", "head", 0),
    ("SIGKILL", "log_epoch", "head", 1),
]


@pytest.mark.slow
def test_fit_head_resume_after_kill_gives_same_bits(
    head_fit_folder: Path, training: Callable[..., int], kill_by: Callable[..., Any]
) -> None:
    arguments = ("train", "r.yaml", "--stage", "head", "--set", "seed=7", "--out")
    for number, kill in enumerate(KILLS):  # the seed is new, so that features are not yet cached
        run = head_fit_folder / f"run{number}"
        assert training(head_fit_folder, *arguments, run.name, kill=kill_by(*kill)) == (
            -9 if kill[0] == "SIGKILL" else 143
        )
        resumed = (run / "last.pt").exists()
        assert (
            training(head_fit_folder, *(("train", "--resume", run / "last.pt") if resumed else (*arguments, run.name)))
            == 0
        )
        assert [row["epoch"] for row in read_rows(run)] == [0, 1]
    assert training(head_fit_folder, *arguments, "uninterrupted") == 0
    for name in ("last.pt", "best_loss.pt", "stages/head.pt"):
        for number in range(len(KILLS)):
            assert_same_checkpoint(
                read_checkpoint(head_fit_folder / "uninterrupted" / name),
                read_checkpoint(head_fit_folder / f"run{number}" / name),
            )


def test_unsupported_head_is_refused_before_computing(ftcli: Ftcli, head_fit_folder: Path) -> None:
    text = (head_fit_folder / "r.yaml").read_text()
    outcome = ftcli("train", "r.yaml", "--set", "head.hidden=[8, 4]")
    assert (outcome.code, outcome.errors) == (
        2,
        [
            "--set head.hidden=[8, 4]: head.hidden: [8, 4] adds hidden layers to the head, and fit needs a single "
            "linear layer (r.yaml:14:10: stages.head.fit); set head.hidden: [], or give the stage epochs and an "
            "optimizer instead of fit"
        ],
    )
    outcome = ftcli("train", "r.yaml", "--set", "backbone.name=squeezenet1_1")
    assert (outcome.code, outcome.errors) == (
        2,
        [
            "r.yaml:14:10: stages.head.fit: fit needs a linear layer on a feature vector, and the head of "
            "squeezenet1_1, classifier.1, is not one (Conv2d); give the stage epochs and an optimizer instead of fit, "
            "or choose another model"
        ],
    )
    assert not (head_fit_folder / "runs").exists()
    assert text.splitlines()[13] == "    fit: logistic_regression"


def test_find_head_layer_refuses_computation_after_head() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.mean((2, 3)))
            return 2 * logits

    preprocessing = Preprocessing(8, 8, "squash", "bilinear", (0,) * 3, (1,) * 3)
    classifier = Classifier.create(Doubled(), preprocessing, ("a", "b"), torch.device("cpu"), "float32")
    with pytest.raises(RecipeError) as caught:
        find_head_layer(classifier, "head", "stage head, fit")
    assert str(caught.value) == (
        "stage head, fit: the network computes on the outputs of its head, head, so the head cannot be fitted by "
        "logistic regression; give the stage epochs and an optimizer instead of fit"
    )


def test_fit_head_without_cache_gives_same_head(
    ftcli: Ftcli, head_fit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "r.yaml", "--stage", "head", "--out")
    assert ftcli(*arguments, "cached").code == 0
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli(*arguments, "uncached").code == 0
    for name in ("last.pt", "best_loss.pt", "stages/head.pt"):
        assert_same_checkpoint(*(read_checkpoint(head_fit_folder / run / name) for run in ("cached", "uncached")))


def test_fit_head_with_full_cache_falls_back_to_images(
    ftcli: Ftcli, head_fit_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(StoreWriter, "reserve", lambda _self, _num_bytes: False)
    outcome = ftcli("train", "r.yaml", "--stage", "head", "--out", "run")
    assert outcome.code == 0, outcome.err
    message = "head: feature extraction, train: the features do not fit in the cache and are computed in each pass"
    assert message in outcome.err.splitlines()


@pytest.mark.covers("stages.fit")
def test_inspect_shows_head_fit_stage(ftcli: Ftcli, head_fit_folder: Path) -> None:
    stages = ftcli("inspect", "r.yaml", "--json").json["stages"]
    assert [stage["name"] for stage in stages] == ["head", "all"]
    assert stages[0]["trainable"] == 1024 * 2 + 2
    assert HeadFitStage.model_fields.keys() == {"name", "freeze", "fit"}
