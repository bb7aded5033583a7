"""A probe that became a head: the network answers as the probe did, and goes on from there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftcli as package
from ftcli.analysis.extraction.heads import LinearHead, plan_linear, save_head
from ftcli.analysis.extraction.sources import Source
from ftcli.analysis.subjects import Subject, load_subject
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import ImageSet
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import RecipeError, RunError
from ftcli.features.extraction import Extractor
from ftcli.features.folding import fold_head
from ftcli.features.layers import resolve_layers
from ftcli.features.probing import Codes, Probe, fit_probe
from ftcli.planning import gather_images
from ftcli.recipe.loading import Document, read_recipe
from ftcli.results import Silent
from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli, read_npz


class Listener(Silent):
    """A Reporter that remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def prepare(name: str = "logistic") -> tuple[Document, Subject, ImageSet, Probe, Codes]:
    """The recipe of the current folder, its network and images, and a probe on the input of the head."""
    document = read_recipe(Path("r.yaml"))
    subject, images = load_subject(document, Silent()), gather_images(document, Silent())
    layers = resolve_layers(subject.model, subject.head, (), 32)
    extractor = Extractor(subject.model, subject.preprocessing, layers, None, torch.device("cpu"), "float32")
    features, labels, splits = [], [], []
    for split, samples in images.splits.items():
        with Loader(
            samples, build_eval_transform(subject.preprocessing), 8, ImageFiles(images.root, "error", 0)
        ) as loader:
            for batch in extractor.extract(loader):
                features.append(batch.features[0].numpy())
                labels.append(batch.labels.numpy())
                splits += [split] * len(batch.paths)
    codes = Codes(np.concatenate(features), np.concatenate(labels), np.array(splits))
    return document, subject, images, fit_probe(name, layers[0].name, codes, images.classes, seed=0), codes


def test_the_head_answers_as_the_probe_and_training_goes_on_from_it(ftcli: Ftcli, few_cells: Path) -> None:
    text = (few_cells / "configs/solar-cells.yaml").read_text()
    text = text.replace("image_size: 160", "image_size: 32\n  num_workers: 0").replace("epochs: 5", "epochs: 1")
    Path("r.yaml").write_text(text)
    wanted = ("--probe", "logistic", "--save-head", "head.pt", "--out", "f.npz")
    extracted = ftcli("extract", "r.yaml", *wanted, "--json").json
    assert extracted["head"] == str(few_cells / "head.pt")

    stored = read_npz("f.npz")
    codes = Codes(stored["features"], stored["labels"], stored["splits"])
    probe = fit_probe("logistic", "x", codes, ("defective", "functional"), seed=0)
    tested = codes.splits == "test"
    own = [probe.classes[label] for label in probe.predict(codes.features[tested])]
    paths = [Path("data/solar-cells") / path for path in stored["paths"][tested]]
    assert [guess.classes[0].name for guess in package.load("head.pt").predict(paths)] == own
    predicted = ftcli("predict", "head.pt", paths[0], "--json").json["predictions"][0]
    assert predicted["classes"][0]["name"] == own[0]

    evaluated = ftcli("evaluate", "head.pt", "--json").json
    assert evaluated["accuracy"] == extracted["probe"]["test_accuracy"]
    assert evaluated["images"] == len(paths)
    val = ftcli("evaluate", "head.pt", "--split", "val", "--json").json
    assert val["accuracy"] == extracted["probe"]["val_accuracy"]
    truth = codes.labels[tested]
    shares = probe.estimator.predict_proba(codes.features[tested].astype(np.float64))
    assert evaluated["loss"] == pytest.approx(-np.log(shares[np.arange(len(truth)), truth]).mean(), abs=1e-5)
    run = ftcli("train", "--resume", "head.pt", "--out", "on", "--json").json
    assert [stage["name"] for stage in run["stages"]] == ["all"]
    assert run["stages"][0]["start_val_loss"] == pytest.approx(val["loss"], rel=1e-5)


def test_a_checkpoint_loses_its_hidden_layers_and_keeps_all_else(
    ftcli: Ftcli, many_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(many_scripts, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    source = Path("runs/photos/best_loss.pt")
    extracted = ftcli("extract", source, "--probe", "svm", "--save-head", "head.pt", "--json").json
    before, after = read_checkpoint(source), read_checkpoint(Path("head.pt"))
    assert (before.recipe["head"]["hidden"], after.recipe["head"]["hidden"]) == ([16], [])
    assert after.recipe["head"]["dropout"] == 0.5
    assert (after.kind, after.stage, after.epoch) == ("best", "head", 0)
    assert (after.classes, after.held, after.preprocessing) == (before.classes, before.held, before.preprocessing)
    kept = [key for key in before.state if not key.startswith("fc.")]
    assert all(torch.equal(before.state[key], after.state[key]) for key in kept)
    assert {key: tuple(after.state[key].shape) for key in after.state if key not in kept} == {
        "fc.1.weight": (5, 1024),
        "fc.1.bias": (5,),
    }
    assert (after.origin["checkpoint"], after.origin["weights"]) == (before.digest, f"{source} (head)")
    assert after.origin["probe"] == {
        "name": "svm",
        "layer": "input of fc",
        "parameters": extracted["probe"]["parameters"],
        "cv_accuracy": extracted["probe"]["cv_accuracy"],
    }
    val = ftcli("evaluate", "head.pt", "--split", "val", "--json").json
    assert after.metrics == {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}


def test_a_head_that_answers_otherwise_is_not_written(workplace: Path) -> None:
    document, subject, images, probe, codes = prepare()
    weight, bias = fold_head(probe, 1024)
    target = workplace / "head.pt"
    with pytest.raises(RunError) as error:
        save_head(Source(document, subject), images, LinearHead(probe, -weight, -bias), target, Silent())
    count, first = len(images.splits["val"]), images.splits["val"][0].path
    label = int(probe.predict(codes.features[codes.splits == "val"])[0])
    assert str(error.value) == (
        f"{target}: val: the head answers otherwise than the probe for {count} of {count} images, the first is {first} "
        f"({images.classes[1 - label]} instead of {images.classes[label]}), so it is not written; set precision: "
        "float32 in the recipe, or leave --save-head out"
    )
    assert not target.exists()


def test_a_network_with_other_features_than_the_probe_saw_is_told(workplace: Path) -> None:
    document, subject, images, probe, codes = prepare()
    known = replace(probe, score=replace(probe.score, val_accuracy=0.0))
    right = int((probe.predict(codes.features) == codes.labels)[codes.splits == "val"].sum())
    count, target = len(images.splits["val"]), workplace / "head.pt"
    with pytest.raises(RunError) as error:
        save_head(Source(document, subject), images, LinearHead(known, *fold_head(probe, 1024)), target, Silent())
    assert str(error.value) == (
        f"{target}: val: the head has {right} of {count} images right, and the probe 0, so the network does not give "
        "the features that the probe was fitted to; the head is not written"
    )
    assert not target.exists()


def test_an_image_between_two_classes_is_told(workplace: Path) -> None:
    """The head is moved so that the image nearest to the border lies just beyond it, nearer than rounding tells."""
    document, subject, images, probe, codes = prepare()
    weight, bias = fold_head(probe, 1024)
    held = np.flatnonzero(codes.splits != "train")
    features, line = torch.from_numpy(codes.features[held]).double(), weight[1].double() - weight[0].double()
    margins = features @ line + bias[1] - bias[0]
    nearest = int(margins.abs().argmin())
    terms = float((features[nearest].abs() * line.abs()).sum() + abs(bias[1] - bias[0]))
    margin = float(margins[nearest])
    moved = bias.double() - torch.tensor([0.0, margin + np.sign(margin) * 4e-6 * terms], dtype=torch.float64)
    listener = Listener()
    head = LinearHead(probe, weight, moved.float())
    save_head(Source(document, subject), images, head, workplace / "head.pt", listener)
    split = codes.splits[held[nearest]]
    assert listener.said == [
        f"{workplace}/head.pt: {split}: 1 of {len(images.splits[split])} images is on the border of two classes, where "
        "rounding decides, and is given another class than by the probe"
    ]


def test_bfloat16_answers_within_its_own_rounding(workplace: Path) -> None:
    document, subject, images, probe, _ = prepare()
    recipe: Any = document.recipe.model_copy(update={"precision": "bfloat16"})
    head = LinearHead(probe, *fold_head(probe, 1024))
    save_head(Source(replace(document, recipe=recipe), subject), images, head, Path("head.pt"), Silent())
    assert read_checkpoint(Path("head.pt")).recipe["precision"] == "bfloat16"


def test_what_can_have_no_linear_head_is_told(ftcli: Ftcli, workplace: Path, photo_folder: Path) -> None:
    arguments = ("--weights", "none", "--data", photo_folder, "--image-size", "64", "--probe", "svm")
    refused = ftcli("extract", "squeezenet1_1", *arguments, "--save-head", "head.pt")
    assert refused.code == 2
    assert refused.faults == [
        "--save-head head.pt: the head of squeezenet1_1, classifier.1, is no linear layer that reads a vector "
        "(Conv2d), so no probe can take its place; choose another model"
    ]
    text = Path("r.yaml").read_text().replace("lr_mult: {head: 10}", 'lr_mult: {"fc.0": 10}')
    Path("r.yaml").write_text(text)
    document = read_recipe(Path("r.yaml"))
    with pytest.raises(RecipeError) as caught:
        plan_linear(document, load_subject(document, Silent()), "--save-head head.pt")
    assert str(caught.value) == (
        "--save-head head.pt: puts one linear layer in the place of the hidden ones: r.yaml:21:14: stages.all.lr_mult: "
        "'fc.0' matches no parameter of the network; did you mean 'fc.1' or 'fc'?"
    )
