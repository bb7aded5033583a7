"""Tests of probes saved as the head of a network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftcli as package
from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.classifier import LoadedModel, load_model
from ftcli.extraction.args import ExtractArgs
from ftcli.extraction.save_head import ProbeHead, plan_linear_head, save_head
from ftcli.extraction.sources import ExtractionSource, SourceArgs
from ftcli.features.extractor import Extractor
from ftcli.features.layers import resolve_layers
from ftcli.features.probes import FeatureSet, Probe, fit_probe, probe_to_linear
from ftcli.planning import load_dataset
from ftcli.recipe.loading import RecipeFile, read_recipe
from ftcli.results import NullReporter
from ftcli.runs.checkpoint import read_checkpoint
from tests.conftest import Ftcli, LibraryLog, read_npz


def make_args(path: Path) -> ExtractArgs:
    """Return the arguments of an extraction that saves its probe as a head in `path`."""
    return ExtractArgs(source_args=SourceArgs(source="r.yaml"), save_head=path)


def fit_probe_on_recipe(name: str = "logistic") -> tuple[RecipeFile, LoadedModel, ImageDataset, Probe, FeatureSet]:
    """Return the recipe of the current folder, its network and images, and a probe on the input of the head."""
    recipe_file = read_recipe(Path("r.yaml"))
    loaded, dataset = load_model(recipe_file, NullReporter()), load_dataset(recipe_file, NullReporter())
    layers = resolve_layers(loaded.model, loaded.head, (), 32)
    extractor = Extractor(loaded.model, loaded.preprocessing, layers, None, torch.device("cpu"), "float32")
    features, labels, splits = [], [], []
    for split, samples in dataset.splits.items():
        with ImageLoader(
            samples, build_eval_transform(loaded.preprocessing), 8, LoaderConfig(dataset.root, "error", 0)
        ) as loader:
            for batch in extractor.extract(loader):
                features.append(batch.features[0].numpy())
                labels.append(batch.labels.numpy())
                splits += [split] * len(batch.paths)
    feature_set = FeatureSet(np.concatenate(features), np.concatenate(labels), np.array(splits))
    return (
        recipe_file,
        loaded,
        dataset,
        fit_probe(name, layers[0].name, feature_set, dataset.classes, seed=0),
        feature_set,
    )


def test_saved_head_predicts_as_probe_and_can_be_trained(ftcli: Ftcli, solar_cells_dir: Path) -> None:
    text = (solar_cells_dir / "configs/solar-cells.yaml").read_text()
    text = text.replace("image_size: 160", "image_size: 32\n  num_workers: 0").replace("epochs: 5", "epochs: 1")
    Path("r.yaml").write_text(text)
    options = ("--probe", "logistic", "--save-head", "head.pt", "--out", "f.npz")
    extracted = ftcli("extract", "r.yaml", *options, "--json").json
    assert extracted["head"] == str(solar_cells_dir / "head.pt")

    stored = read_npz("f.npz")
    feature_set = FeatureSet(stored["features"], stored["labels"], stored["splits"])
    probe = fit_probe("logistic", "x", feature_set, ("defective", "functional"), seed=0)
    in_test = feature_set.splits == "test"
    expected_names = [probe.classes[label] for label in probe.predict(feature_set.features[in_test])]
    paths = [Path("data/solar-cells") / path for path in stored["paths"][in_test]]
    assert [score.classes[0].name for score in package.load("head.pt").predict(paths)] == expected_names
    predicted = ftcli("predict", "head.pt", paths[0], "--json").json["predictions"][0]
    assert predicted["classes"][0]["name"] == expected_names[0]

    evaluated = ftcli("evaluate", "head.pt", "--json").json
    assert evaluated["accuracy"] == extracted["probe"]["test_accuracy"]
    assert evaluated["images"] == len(paths)
    val = ftcli("evaluate", "head.pt", "--split", "val", "--json").json
    assert val["accuracy"] == extracted["probe"]["val_accuracy"]
    truth = feature_set.labels[in_test]
    probabilities = probe.estimator.predict_proba(feature_set.features[in_test].astype(np.float64))
    assert evaluated["loss"] == pytest.approx(-np.log(probabilities[np.arange(len(truth)), truth]).mean(), abs=1e-5)
    run = ftcli("train", "--resume", "head.pt", "--out", "on", "--json").json
    assert [stage["name"] for stage in run["stages"]] == ["all"]
    assert run["stages"][0]["start_val_loss"] == pytest.approx(val["loss"], rel=1e-5)


def test_save_head_drops_hidden_layers_only(
    ftcli: Ftcli, unicode_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unicode_run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    source = Path("runs/photos/best_loss.pt")
    extracted = ftcli("extract", source, "--probe", "svm", "--save-head", "head.pt", "--json").json
    before, after = read_checkpoint(source), read_checkpoint(Path("head.pt"))
    assert (before.recipe["head"]["hidden"], after.recipe["head"]["hidden"]) == ([16], [])
    assert after.recipe["head"]["dropout"] == 0.5
    assert (after.kind, after.stage, after.epoch) == ("best", "head", 0)
    assert (after.classes, after.splits, after.preprocessing) == (before.classes, before.splits, before.preprocessing)
    backbone_keys = [key for key in before.state if not key.startswith("fc.")]
    assert all(torch.equal(before.state[key], after.state[key]) for key in backbone_keys)
    assert {key: tuple(after.state[key].shape) for key in after.state if key not in backbone_keys} == {
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


def test_save_head_refuses_head_with_other_predictions(work_dir: Path) -> None:
    recipe_file, loaded, dataset, probe, feature_set = fit_probe_on_recipe()
    weight, bias = probe_to_linear(probe, 1024)
    target = work_dir / "head.pt"
    with pytest.raises(RunError) as error:
        save_head(
            ExtractionSource(recipe_file, loaded),
            dataset,
            ProbeHead(probe, -weight, -bias),
            make_args(target),
            NullReporter(),
        )
    count, first = len(dataset.splits["val"]), dataset.splits["val"][0].path
    label = int(probe.predict(feature_set.features[feature_set.splits == "val"])[0])
    assert str(error.value) == (
        f"{target}: val: the head and the probe predict different classes for {count} of {count} images, first for "
        f"{first} ({dataset.classes[1 - label]} instead of {dataset.classes[label]}); set precision: float32 in the "
        "recipe, or omit --save-head"
    )
    assert not target.exists()


def test_save_head_refuses_network_with_other_features(work_dir: Path) -> None:
    recipe_file, loaded, dataset, probe, feature_set = fit_probe_on_recipe()
    known = replace(probe, score=replace(probe.score, val_accuracy=0.0))
    num_correct = int((probe.predict(feature_set.features) == feature_set.labels)[feature_set.splits == "val"].sum())
    count, target = len(dataset.splits["val"]), work_dir / "head.pt"
    with pytest.raises(RunError) as error:
        save_head(
            ExtractionSource(recipe_file, loaded),
            dataset,
            ProbeHead(known, *probe_to_linear(probe, 1024)),
            make_args(target),
            NullReporter(),
        )
    assert str(error.value) == (
        f"{target}: val: {num_correct} of {count} images are correct with the head, and 0 with the probe: the "
        "network's features are not those that the probe was fitted to; extract them again with --no-cache, or "
        "omit --save-head"
    )
    assert not target.exists()


def test_save_head_reports_borderline_image(work_dir: Path, log: LibraryLog) -> None:
    """The bias is moved so that the image with the smallest margin changes its class, within the rounding tolerance."""
    recipe_file, loaded, dataset, probe, feature_set = fit_probe_on_recipe()
    weight, bias = probe_to_linear(probe, 1024)
    held_out = np.flatnonzero(feature_set.splits != "train")
    features, line = torch.from_numpy(feature_set.features[held_out]).double(), weight[1].double() - weight[0].double()
    margins = features @ line + bias[1] - bias[0]
    nearest = int(margins.abs().argmin())
    terms = float((features[nearest].abs() * line.abs()).sum() + abs(bias[1] - bias[0]))
    margin = float(margins[nearest])
    moved = bias.double() - torch.tensor([0.0, margin + np.sign(margin) * 4e-6 * terms], dtype=torch.float64)
    head = ProbeHead(probe, weight, moved.float())
    save_head(ExtractionSource(recipe_file, loaded), dataset, head, make_args(work_dir / "head.pt"), NullReporter())
    split = feature_set.splits[held_out[nearest]]
    assert log.messages == [
        f"{work_dir}/head.pt: {split}: 1 of {len(dataset.splits[split])} images is a tie of two classes; rounding "
        "changes the predicted class"
    ]


def test_save_head_allows_bfloat16_rounding(work_dir: Path) -> None:
    recipe_file, loaded, dataset, probe, _ = fit_probe_on_recipe()
    recipe: Any = recipe_file.recipe.model_copy(update={"precision": "bfloat16"})
    head = ProbeHead(probe, *probe_to_linear(probe, 1024))
    save_head(
        ExtractionSource(replace(recipe_file, recipe=recipe), loaded),
        dataset,
        head,
        make_args(Path("head.pt")),
        NullReporter(),
    )
    assert read_checkpoint(Path("head.pt")).recipe["precision"] == "bfloat16"


def test_plan_linear_head_reports_unsupported_heads(ftcli: Ftcli, work_dir: Path, photo_folder: Path) -> None:
    arguments = ("--weights", "none", "--data", photo_folder, "--image-size", "64", "--probe", "svm")
    refused = ftcli("extract", "squeezenet1_1", *arguments, "--save-head", "head.pt")
    assert refused.code == 2
    assert refused.errors == [
        "--save-head head.pt: the head of squeezenet1_1, classifier.1 (Conv2d), is not a linear layer on a vector, so "
        "a probe cannot replace it; choose another model"
    ]
    text = Path("r.yaml").read_text().replace("lr_mult: {head: 10}", 'lr_mult: {"fc.0": 10}')
    Path("r.yaml").write_text(text)
    recipe_file = read_recipe(Path("r.yaml"))
    with pytest.raises(RecipeError) as caught:
        plan_linear_head(recipe_file, load_model(recipe_file, NullReporter()), "--save-head head.pt")
    assert str(caught.value) == (
        "--save-head head.pt: replaces the hidden layers of the head by one linear layer: r.yaml:21:14: "
        "stages.all.lr_mult: 'fc.0' matches no parameter of the network; did you mean 'fc.1' or 'fc'?"
    )
