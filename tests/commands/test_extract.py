"""`ftcli extract`: features of all images in any format, classifiers on them, and nothing left behind by a fault."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from safetensors.numpy import load_file

import ftcli as package
from ftcli.analysis.extraction.wishes import LINEAR
from ftcli.console.extractions import print_extraction
from ftcli.data.loading import Loader
from ftcli.features.arrays import ArrayStream
from ftcli.features.layers import Layer
from ftcli.features.pooling import Pool, pool_values
from ftcli.features.probing import PROBES
from ftcli.features.spool import Spool
from ftcli.features.stores import Dtype
from ftcli.planning import gather_images
from ftcli.recipe.loading import read_recipe
from ftcli.results import Extraction, FeatureLayer, ProbeScore, Silent
from tests.conftest import Ftcli, read_npz

QUICK = ["--num-workers", "0", "--weights", "none", "--image-size", "32"]
NAME = "resnet18"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_format_holds_the_same(workplace: Path, ftcli: Ftcli) -> None:
    images = gather_images(read_recipe(Path("r.yaml")), Silent())
    samples = [(sample, split) for split, samples in images.splits.items() for sample in samples]
    for ending, dtype in (("npz", []), ("parquet", []), ("safetensors", []), ("npy", ["--dtype", "float16"])):
        told = ftcli("extract", "r.yaml", "--out", f"codes.{ending}", *dtype, "--json").json
        assert (told["output"], told["images"], told["dimensions"]) == (str(workplace / f"codes.{ending}"), 52, 1024)
        assert told["splits"] == {split: len(samples) for split, samples in images.splits.items()}
    npz = read_npz("codes.npz")
    assert npz["labels"].tolist() == [sample.label for sample, _ in samples]
    assert npz["paths"].tolist() == [sample.path for sample, _ in samples]
    assert npz["splits"].tolist() == [split for _, split in samples]
    assert npz["classes"].tolist() == ["china", "flower"]
    about = json.loads(str(npz["about"]))
    assert (about["source"], about["model"], about["weights_sha256"]) == ("r.yaml", "shufflenet_v2_x0_5", None)
    assert npz["features"].std(0).max() > 0
    table = parquet.read_table("codes.parquet")
    assert table["path"].to_pylist() == npz["paths"].tolist()
    assert np.array_equal(np.stack(table["features"].to_numpy()), npz["features"])
    assert np.array_equal(load_file("codes.safetensors")["features"], npz["features"])
    assert np.array_equal(np.load("codes.npy"), npz["features"].astype(np.float16))
    assert json.loads(Path("codes.json").read_text())["about"]["dtype"] == "float16"
    assert list_names(workplace) == [
        "codes.json",
        *(f"codes.{x}" for x in ("npy", "npz", "parquet", "safetensors")),
        "r.yaml",
    ]


def test_a_checkpoints_features_are_those_that_its_head_reads(finished: Path, ftcli: Ftcli) -> None:
    best = finished / "runs/photos/best_loss.pt"
    layers = ["--layer", "input of fc", "--layers", "head.0", "--layer", "conv5"]
    told = ftcli("extract", best, *layers, "--pool", "max", "--out", "codes.npz", "--json").json
    assert [(layer["name"], layer["shape"]) for layer in told["layers"]] == [
        ("input of fc", [1024]),
        ("fc.0", [16]),
        ("conv5", [1024]),
    ]
    assert told["pool"] == "max"
    classifier = package.load(best)
    codes = read_npz("codes.npz")
    head = classifier.model.get_submodule("fc")
    with torch.inference_mode():
        given = torch.from_numpy(codes["features/input of fc"])
        probabilities = head(given).softmax(1)
        assert torch.allclose(head[0](given), torch.from_numpy(codes["features/fc.0"]), atol=1e-5)  # type: ignore[index]
    root = Path(read_recipe(Path("r.yaml")).recipe.data.roots[0])
    predicted = classifier.predict([root / path for path in codes["paths"]], top=2)
    for row, prediction in zip(probabilities.tolist(), predicted, strict=True):
        assert {guess.name: pytest.approx(guess.probability, abs=1e-4) for guess in prediction.classes} == dict(
            zip(("china", "flower"), row, strict=True)
        )
    held = json.loads((finished / "runs/photos/run.json").read_text())["data"]["splits"]
    assert [path for split in ("train", "val", "test") for path in held[split]] == codes["paths"].tolist()
    assert (
        json.loads(str(codes["about"]))["weights_sha256"]
        == ftcli("inspect", best, "--json").json["checkpoint"]["sha256"]
    )


def test_a_name_is_tried_by_its_layers(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    outcome = ftcli("extract", NAME, "--data", photo_folder, *QUICK, "--layers", "all", "--probe", "logistic", "--json")
    told = outcome.json
    assert len(told["layers"]) == len(told["probes"]) > 3
    assert told["layer"] == told["probe"]["layer"]
    assert told["probe"]["cv_accuracy"] == max(probe["cv_accuracy"] for probe in told["probes"])
    assert told["splits"] == {"train": 34, "val": 6, "test": 12}  # each of the 40 is val with a chance of 0.1
    assert told["picture"] == str(workplace / f"{NAME}-logistic-depth.png")
    assert list_names(workplace) == ["r.yaml", f"{NAME}-logistic-depth.png"]


def test_a_saved_head_does_as_its_probe_did(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    arguments = ["extract", NAME, "--data", photo_folder, *QUICK, "--probe", "svm", "--save-head", "my head.pt"]
    told = ftcli(*arguments, "--json").json
    assert told["next_command"] == "ftcli evaluate 'my head.pt'"
    assert ftcli("evaluate", "my head.pt", "--json").json["accuracy"] == told["probe"]["test_accuracy"]
    trained = ftcli("train", "--resume", "my head.pt", "--stage", "all", "--set", "stages.all.epochs=1", "--json")
    assert trained.code == 0, trained.err


def test_people_read_what_was_taken_and_how_good_it_is(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    arguments = ["extract", NAME, "--data", photo_folder, *QUICK, "--probe", "knn", "--layer", "layer3"]
    lines = ftcli(*arguments, "--out", "c.npz").out.splitlines()
    assert lines[:3] == [
        f"{NAME}: 52 images (train 34, val 6, test 12)",
        "weights: none",
        "layer: layer3, 256x2x2 (avg) -> 256 numbers an image",
    ]
    assert re.fullmatch(
        r"k nearest neighbours on layer3: test accuracy [0-9.]+% \(95 %: [0-9.]+ to [0-9.]+%\) on 12 images; "
        r"validation [0-9.]+%; cross-validation [0-9.]+%, n_neighbors = \d+",
        lines[3],
    )
    assert lines[4:] == ["always the most frequent class: 50.0%", "features: c.npz"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentences"),
    [
        (
            ["r.yaml"],
            2,
            [
                "extract: nothing is asked for; add --out for a file of the features, or --probe for a classifier on "
                "them"
            ],
        ),
        (
            ["r.yaml", "--out", "a.npx", "--dtype", "float61", "--pool", "mean", "--probe", "swm", "--match", "name"],
            2,
            [
                "--match: does nothing without --weights; add it",
                "--pool mean: there is no such choice; known: avg, flatten, max, none, token",
                "--dtype float61: there is no such choice; did you mean 'float16' or 'float32'?",
                "--probe swm: there is no such probe; did you mean 'svm'?",
                "--out: a.npx has an ending of no known format; did you mean '.npz' or '.npy'?",
            ],
        ),
        (
            [
                "r.yaml",
                "--save-head",
                "a.pth",
                "--plot",
                "a.jpg",
                "--dtype",
                "float16",
                "--layer",
                "x",
                "--layer",
                "x",
            ],
            2,
            [
                "--layer x: stands twice; give it once",
                "--dtype float16: does nothing without --out; add it",
                "--plot a.jpg: does nothing without --probe; add it",
                "--save-head a.pth: needs a linear probe; add --probe svm or --probe logistic",
                "--save-head a.pth: goes with the input of the head alone, not with --layer x; leave one out",
                "--save-head: a.pth does not end in .pt; give such a name",
                "--plot: a.jpg does not end in .png; give such a name",
            ],
        ),
        (
            ["r.yaml", "--out", "r.yaml/a.npz"],
            2,
            ["--out: the folder r.yaml cannot be written (Not a directory); give a place that you may write to"],
        ),
        (
            ["r.yaml", "--out", "/proc/a.npz"],
            2,
            [
                "--out: the folder /proc cannot be written (No such file or directory); give a place that you may "
                "write to"
            ],
        ),
        (
            ["r.yaml", "--out", "a.npy", "--layers", "all"],
            2,
            ["--out: a.npy holds one array, and several layers are asked for; give a .npz file"],
        ),
        (
            [NAME, *QUICK, "--data", "one", "--out", "a.npy", "--layer", "layer*"],
            2,
            ["--out: a.npy holds one array, and several layers are asked for; give a .npz file"],
        ),
        (
            [NAME, *QUICK, "--data", "one", "--probe", "svm", "--plot", "a.png"],
            2,
            [
                "--plot a.png: shows accuracies by depth, and one layer is taken; add --layers all, or leave it out",
            ],
        ),
        (
            ["resnet18", "--out", "a.npz"],
            2,
            ["extract: resnet18 is the name of a model, which has no images; add --data with a folder or manifest"],
        ),
        (
            ["resnot18", "--data", "one", "--out", "a.npz"],
            2,
            ["extract: no model is called 'resnot18'; did you mean 'resnet18' or 'resnet152' or 'resnet101'?"],
        ),
        (
            ["one", "--out", "a.npz"],
            2,
            ["extract: one is neither a recipe (.yaml) nor a checkpoint (.pt); give one in it"],
        ),
        (
            ["x.pt", "--image-size", "64", "--weights", "none", "--out", "a.npz"],
            2,
            [
                "--weights none: goes with the name of a model; a recipe or checkpoint has weights of its own",
                "--image-size 64: x.pt has the size that it was trained with; leave it out",
            ],
        ),
        (
            [NAME, *QUICK, "--data", "one", "--layer", "layer9", "--out", "a.npz"],
            2,
            [
                "--layer layer9: no image passes through a module or graph node of this name; did you mean 'layer4' or "
                "'layer3' or 'layer2'?"
            ],
        ),
        (
            [NAME, *QUICK, "--data", "one", "--pool", "token", "--out", "a.npz"],
            2,
            ["--pool token: the network has no class token; give avg, max, flatten or none"],
        ),
        (
            [NAME, *QUICK, "--data", "empty", "--out", "a.npz"],
            3,
            [
                "--data empty: data.root: empty has no class folders; put the images of each class into a folder of "
                "its own"
            ],
        ),
        (
            [NAME, *QUICK, "--data", "one", "--probe", "svm"],
            3,
            ["--data one: data.root: one/train has one class only, 'china'; a classifier needs at least 2"],
        ),
        (
            [NAME, *QUICK, "--data", "pair.csv", "--probe", "svm"],
            3,
            [
                "--probe svm: cross-validation needs at least 2 images of each class in train, and 2 of 2 classes "
                "have fewer: china (1), flower (1); add images to their folders in train, or take these classes out"
            ],
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    workplace: Path, ftcli: Ftcli, photo_folder: Path, arguments: list[str], code: int, sentences: list[str]
) -> None:
    (workplace / "empty").mkdir()
    shutil.copytree(photo_folder / "train/china", workplace / "one/train/china")
    rows = [f"{photo_folder}/train/{name}/{number}.jpg,{name}" for name in ("china", "flower") for number in range(3)]
    splits = ["train", "val", "test"] * 2
    pair = "".join(f"\n{row},{split}" for row, split in zip(rows, splits, strict=True))
    (workplace / "pair.csv").write_text(f"path,label,split{pair}")
    outcome = ftcli("extract", *arguments)
    assert (outcome.code, outcome.faults) == (code, sentences)
    assert list_names(workplace) == ["empty", "one", "pair.csv", "r.yaml"]


def test_a_layer_whose_output_is_no_tensor_is_refused(workplace: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("extract", "r.yaml", "--layer", "stage2.1.chunk", "--out", "a.npz")
    assert outcome.code == 2
    assert outcome.faults == [
        "--layer stage2.1.chunk: its output is a tuple of 2, not one tensor; choose a layer within it or after it"
    ]
    assert list_names(workplace) == ["r.yaml"]


def test_other_classes_than_a_checkpoints_are_named(finished: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, finished / "field")
    for split in ("train", "test"):
        (finished / "field" / split / "flower").rename(finished / "field" / split / "tulip")
    before = list_names(finished)
    outcome = ftcli("extract", "best_loss.pt", "--data", "field", "--out", "a.npz")
    assert outcome.code == 4
    assert outcome.faults == [
        "runs/photos/best_loss.pt: was trained on other classes than field has: missing there: flower; unknown to the "
        "checkpoint: tulip; give the folder it belongs to, or train anew"
    ]
    assert list_names(finished) == before


def test_broken_images_are_counted_and_named(workplace: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, workplace / "photos")
    (workplace / "photos/train/china/3.jpg").write_bytes(b"no image")
    text = (workplace / "r.yaml").read_text()
    outcome = ftcli("extract", "r.yaml", "--data", "photos", "--out", "a.npz")
    assert outcome.code == 3
    assert list_names(workplace) == ["photos", "r.yaml"]
    (workplace / "r.yaml").write_text(text.replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip"))
    told = ftcli("extract", "r.yaml", "--data", "photos", "--out", "a.npz", "--json").json
    assert told["images"] == 51
    assert len(told["skipped"]) == 1
    assert "photos/train/china/3.jpg" in told["skipped"][0]
    assert "train/china/3.jpg" not in read_npz("a.npz")["paths"]


def test_what_float16_cannot_hold_ends_the_pass(workplace: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(values: torch.Tensor, layer: Layer, how: Pool | None) -> torch.Tensor:
        return pool_values(values, layer, how).clamp(min=0.1) * 1e6

    monkeypatch.setattr("ftcli.features.extraction.pool_values", pool)
    outcome = ftcli("extract", "r.yaml", "--out", "a.npz", "--dtype", "float16")
    assert outcome.code == 1
    (told,) = outcome.faults
    assert told.startswith("input of fc: its output for train/china/")
    assert told.endswith(", and float16 ends at 65504; take --dtype float32")
    assert list_names(workplace) == ["r.yaml"]


@pytest.mark.parametrize(
    ("place", "number", "code", "sentence"),
    [
        ((Spool, "add"), signal.SIGTERM, 143, "terminated; nothing is half written"),
        ((ArrayStream, "write"), signal.SIGTERM, 143, "terminated; nothing is half written"),
        ((ArrayStream, "write"), signal.SIGINT, 130, "stopped at once; what was saved last is whole"),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(
    workplace: Path,
    ftcli: Ftcli,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[type, str],
    number: signal.Signals,
    code: int,
    sentence: str,
) -> None:
    work = getattr(*place)

    def work_and_stop(*arguments: Any) -> None:
        work(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(*place, work_and_stop)
    monkeypatch.setenv("TMPDIR", str(workplace))
    outcome = ftcli("extract", "r.yaml", "--out", "a.npz")
    assert (outcome.code, outcome.faults) == (code, [sentence])
    assert list_names(workplace) == ["r.yaml"]


def test_batches_and_processes_are_those_that_are_asked_for(
    workplace: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    class Watched(Loader):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append((self.batch_size, self.num_workers))

    monkeypatch.setattr("ftcli.analysis.extraction.passes.Loader", Watched)
    ftcli("extract", "r.yaml", "--out", "a.npz", "--batch-size", "5", "--num-workers", "2", "--no-cache")
    assert set(seen) == {(5, 2), (5, 1)}
    seen.clear()
    monkeypatch.setattr("ftcli.inference.inputs.Loader", Watched)
    arguments = (
        "--probe",
        "logistic",
        "--save-head",
        "head.pt",
        "--batch-size",
        "64",
        "--num-workers",
        "1",
        "--no-cache",
    )
    assert ftcli("extract", "r.yaml", *arguments).code == 0
    splits = json.loads(ftcli("extract", "r.yaml", "--out", "a.npz", "--json").out)["splits"]
    assert seen[: len(splits) + 2] == [(64, 0)] * len(splits) + [(64, 1)] * 2


def test_mean_and_std_are_measured_as_in_training(workplace: Path, ftcli: Ftcli) -> None:
    recipe = workplace / "r.yaml"
    recipe.write_text(recipe.read_text().replace("augment:", "normalize: dataset\n  augment:"))
    ftcli("extract", "r.yaml", "--out", "a.npz")
    ftcli("train", "r.yaml", "--stage", "head", "--set", "stages.head.epochs=1")
    trained = ftcli("inspect", "best_loss.pt", "--json").json["preprocessing"]
    assert json.loads(str(read_npz("a.npz")["about"]))["preprocessing"] == trained


def test_the_choices_that_are_offered_are_those_of_the_library(ftcli: Ftcli) -> None:
    told = ftcli("extract", "--help").out
    for option, known in (("--pool", get_args(Pool)), ("--dtype", get_args(Dtype)), ("--probe", PROBES)):
        assert re.search(rf"{option} +{re.escape('|'.join(known))}\s", told), option
    assert set(LINEAR) < set(PROBES)


def test_the_table_of_layers_fits_a_narrow_terminal() -> None:
    score = ProbeScore("rbf", "layer1", {"C": 0.01, "gamma": "scale"}, 5, 0.9, 30, None, 0.5, 0.25, 0.75, 12, 1.0, 0.5)
    layers = tuple(FeatureLayer(name, (64, 8, 8), (64,), depth) for name, depth in (("layer1", 0.1), ("layer2", 1.0)))
    scores = (score, replace(score, layer="layer2", cv_accuracy=0.8, test_accuracy=None, test_low=None, test_high=None))
    stream = io.StringIO()
    result = Extraction(
        "r.yaml", "none", None, "layer1", 52, 64, 1.0, score, layers, scores, splits={"train": 40, "test": 12}
    )
    print_extraction(Console(file=stream, width=60), result)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(map(len, lines)) <= 60
    assert lines == [
        "r.yaml: 52 images (train 40, test 12)",
        "weights: none",
        "",
        "RBF SVM by depth, accuracy in %; * is best in",
        "cross-validation:",
        "layer  depth numbers   cv val test 95 %",
        "layer1   10%      64 90.0   - 50.0 25.0 to 75.0 *",
        "layer2  100%      64 80.0   -    - -",
        "",
        "RBF SVM on layer1: test accuracy 50.0% (95 %: 25.0 to 75.0%)",
        "on 12 images; cross-validation 90.0%, C = 0.01, gamma =",
        "scale",
        "always the most frequent class: 50.0%",
    ]
