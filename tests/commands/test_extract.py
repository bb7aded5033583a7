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
from ftcli.console.extractions import print_extraction
from ftcli.data.loader import ImageLoader
from ftcli.extraction.args import LINEAR_PROBES
from ftcli.features.extractor import FeatureBuffer
from ftcli.features.layers import LayerSpec
from ftcli.features.pooling import Pool, pool_values
from ftcli.features.probes import PROBES
from ftcli.features.writers import ArrayStream, FeatureDtype
from ftcli.planning import load_dataset
from ftcli.recipe.loading import read_recipe
from ftcli.results import ExtractResult, FeatureLayer, NullReporter, ProbeScore
from tests.conftest import Ftcli, read_npz

FAST_OPTIONS = ["--num-workers", "0", "--weights", "none", "--image-size", "32"]
MODEL = "resnet18"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_extract_formats_hold_same_features(work_dir: Path, ftcli: Ftcli) -> None:
    images = load_dataset(read_recipe(Path("r.yaml")), NullReporter())
    samples = [(sample, split) for split, samples in images.splits.items() for sample in samples]
    for ending, dtype in (("npz", []), ("parquet", []), ("safetensors", []), ("npy", ["--dtype", "float16"])):
        result = ftcli("extract", "r.yaml", "--out", f"features.{ending}", *dtype, "--json").json
        assert (result["output"], result["images"], result["dimensions"]) == (
            str(work_dir / f"features.{ending}"),
            52,
            1024,
        )
        assert result["splits"] == {split: len(samples) for split, samples in images.splits.items()}
    npz = read_npz("features.npz")
    assert npz["labels"].tolist() == [sample.label for sample, _ in samples]
    assert npz["paths"].tolist() == [sample.path for sample, _ in samples]
    assert npz["splits"].tolist() == [split for _, split in samples]
    assert npz["classes"].tolist() == ["china", "flower"]
    about = json.loads(str(npz["about"]))
    assert (about["source"], about["model"], about["weights_sha256"]) == ("r.yaml", "shufflenet_v2_x0_5", None)
    assert npz["features"].std(0).max() > 0
    table = parquet.read_table("features.parquet")
    assert table["path"].to_pylist() == npz["paths"].tolist()
    assert np.array_equal(np.stack(table["features"].to_numpy()), npz["features"])
    assert np.array_equal(load_file("features.safetensors")["features"], npz["features"])
    assert np.array_equal(np.load("features.npy"), npz["features"].astype(np.float16))
    assert json.loads(Path("features.json").read_text())["about"]["dtype"] == "float16"
    assert list_names(work_dir) == [
        "features.json",
        *(f"features.{x}" for x in ("npy", "npz", "parquet", "safetensors")),
        "r.yaml",
    ]


def test_extract_features_match_head_input(work_dir_with_run: Path, ftcli: Ftcli) -> None:
    best = work_dir_with_run / "runs/photos/best_loss.pt"
    layers = ["--layer", "input of fc", "--layers", "head.0", "--layer", "conv5"]
    result = ftcli("extract", best, *layers, "--pool", "max", "--out", "features.npz", "--json").json
    assert [(layer["name"], layer["shape"]) for layer in result["layers"]] == [
        ("input of fc", [1024]),
        ("fc.0", [16]),
        ("conv5", [1024]),
    ]
    assert result["pool"] == "max"
    classifier = package.load(best)
    npz = read_npz("features.npz")
    head = classifier.model.get_submodule("fc")
    with torch.inference_mode():
        head_inputs = torch.from_numpy(npz["features/input of fc"])
        probabilities = head(head_inputs).softmax(1)
        assert torch.allclose(head[0](head_inputs), torch.from_numpy(npz["features/fc.0"]), atol=1e-5)  # type: ignore[index]
    root = Path(read_recipe(Path("r.yaml")).recipe.data.roots[0])
    predicted = classifier.predict([root / path for path in npz["paths"]], top=2)
    for row, prediction in zip(probabilities.tolist(), predicted, strict=True):
        assert {guess.name: pytest.approx(guess.probability, abs=1e-4) for guess in prediction.classes} == dict(
            zip(("china", "flower"), row, strict=True)
        )
    splits = json.loads((work_dir_with_run / "runs/photos/run.json").read_text())["data"]["splits"]
    assert [path for split in ("train", "val", "test") for path in splits[split]] == npz["paths"].tolist()
    assert (
        json.loads(str(npz["about"]))["weights_sha256"] == ftcli("inspect", best, "--json").json["checkpoint"]["sha256"]
    )


def test_extract_probes_all_layers_of_model(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    outcome = ftcli(
        "extract", MODEL, "--data", photo_folder, *FAST_OPTIONS, "--layers", "all", "--probe", "logistic", "--json"
    )
    result = outcome.json
    assert len(result["layers"]) == len(result["probes"]) > 3
    assert result["layer"] == result["probe"]["layer"]
    assert result["probe"]["cv_accuracy"] == max(probe["cv_accuracy"] for probe in result["probes"])
    assert result["splits"] == {"train": 34, "val": 6, "test": 12}  # each of the 40 is val with a chance of 0.1
    assert result["picture"] == str(work_dir / f"{MODEL}-logistic-depth.png")
    assert list_names(work_dir) == ["r.yaml", f"{MODEL}-logistic-depth.png"]


def test_extract_saved_head_matches_probe(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    arguments = ["extract", MODEL, "--data", photo_folder, *FAST_OPTIONS, "--probe", "svm", "--save-head", "my head.pt"]
    result = ftcli(*arguments, "--json").json
    assert result["next_command"] == "ftcli evaluate 'my head.pt'"
    assert ftcli("evaluate", "my head.pt", "--json").json["accuracy"] == result["probe"]["test_accuracy"]
    trained = ftcli("train", "--resume", "my head.pt", "--stage", "all", "--set", "stages.all.epochs=1", "--json")
    assert trained.code == 0, trained.err


def test_extract_prints_layer_and_probe(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    arguments = ["extract", MODEL, "--data", photo_folder, *FAST_OPTIONS, "--probe", "knn", "--layer", "layer3"]
    lines = ftcli(*arguments, "--out", "c.npz").out.splitlines()
    assert lines[:3] == [
        f"{MODEL}: 52 images (train 34, val 6, test 12)",
        "weights: none",
        "layer: layer3, 256x2x2 (avg) -> 256 features per image",
    ]
    assert re.fullmatch(
        r"k nearest neighbors on layer3: test accuracy [0-9.]+% \(95% interval [0-9.]+ to [0-9.]+%\) on 12 images; "
        r"val accuracy [0-9.]+%; cross-validation accuracy [0-9.]+%, n_neighbors = \d+",
        lines[3],
    )
    assert lines[4:] == ["always predicting the most frequent class: 50.0%", "features: c.npz"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentences"),
    [
        (
            ["r.yaml"],
            2,
            ["extract: no output is requested; add --out for a file of features, or --probe for a classifier on them"],
        ),
        (
            ["r.yaml", "--out", "a.npx", "--dtype", "float61", "--pool", "mean", "--probe", "swm", "--match", "name"],
            2,
            [
                "--match: requires --weights",
                "--pool: unknown value 'mean'; known: avg, flatten, max, none, token",
                "--dtype: unknown value 'float61'; did you mean 'float16' or 'float32'?",
                "--probe: unknown probe 'swm'; did you mean 'svm'?",
                "--out: a.npx has an unknown suffix '.npx'; did you mean '.npz' or '.npy'?",
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
                "--layer x: is given twice; give it once",
                "--dtype float16: has no effect without --out; add it",
                "--plot a.jpg: has no effect without --probe; add it",
                "--save-head a.pth: needs a linear probe; add --probe svm or --probe logistic",
                "--save-head a.pth: cannot be combined with --layer x: the head reads its input; omit one of them",
                "--save-head: a.pth does not end in .pt; give a path that does",
                "--plot: a.jpg does not end in .png; give a path that does",
            ],
        ),
        (
            ["r.yaml", "--out", "r.yaml/a.npz"],
            2,
            ["--out: the folder r.yaml cannot be written (Not a directory); give a path in a writable folder"],
        ),
        (
            ["r.yaml", "--out", "/proc/a.npz"],
            2,
            ["--out: the folder /proc cannot be written (No such file or directory); give a path in a writable folder"],
        ),
        (
            ["r.yaml", "--out", "a.npy", "--layers", "all"],
            2,
            ["--out: a.npy holds one array, not several layers; give a .npz file"],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "one", "--out", "a.npy", "--layer", "layer*"],
            2,
            ["--out: a.npy holds one array, not several layers; give a .npz file"],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "one", "--probe", "svm", "--plot", "a.png"],
            2,
            [
                "--plot a.png: needs several layers; add --layers all, or omit it",
            ],
        ),
        (
            ["resnet18", "--out", "a.npz"],
            2,
            ["extract: resnet18 is a model, which has no images; add --data with a folder or manifest"],
        ),
        (
            ["resnot18", "--data", "one", "--out", "a.npz"],
            2,
            ["extract: unknown model 'resnot18'; did you mean 'resnet18' or 'resnet152' or 'resnet101'?"],
        ),
        (
            ["one", "--out", "a.npz"],
            2,
            ["extract: one is neither a recipe (.yaml) nor a checkpoint (.pt); give one of these"],
        ),
        (
            ["x.pt", "--image-size", "64", "--weights", "none", "--out", "a.npz"],
            2,
            [
                "--weights none: requires a model name; recipes and checkpoints have their own weights",
                "--image-size 64: x.pt has a fixed image size; omit it",
            ],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "one", "--layer", "layer9", "--out", "a.npz"],
            2,
            [
                "--layer layer9: the forward pass has no module or graph node of this name; did you mean 'layer4' or "
                "'layer3' or 'layer2'?"
            ],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "one", "--pool", "token", "--out", "a.npz"],
            2,
            ["--pool token: the network has no class token; give avg, max, flatten or none"],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "empty", "--out", "a.npz"],
            3,
            [
                "--data empty: data.root: empty has no class folders; put the images of each class into a folder of "
                "its own"
            ],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "one", "--probe", "svm"],
            3,
            ["--data one: data.root: one/train has only one class, 'china'; add another"],
        ),
        (
            [MODEL, *FAST_OPTIONS, "--data", "pair.csv", "--probe", "svm"],
            3,
            [
                "--probe svm: cross-validation needs at least 2 images of each class in train, and 2 of 2 classes "
                "have fewer: china (1), flower (1); add images to their folders in train, or remove these classes"
            ],
        ),
    ],
)
def test_extract_reports_errors_before_writing(
    work_dir: Path, ftcli: Ftcli, photo_folder: Path, arguments: list[str], code: int, sentences: list[str]
) -> None:
    (work_dir / "empty").mkdir()
    shutil.copytree(photo_folder / "train/china", work_dir / "one/train/china")
    rows = [f"{photo_folder}/train/{name}/{number}.jpg,{name}" for name in ("china", "flower") for number in range(3)]
    splits = ["train", "val", "test"] * 2
    pair = "".join(f"\n{row},{split}" for row, split in zip(rows, splits, strict=True))
    (work_dir / "pair.csv").write_text(f"path,label,split{pair}")
    outcome = ftcli("extract", *arguments)
    assert (outcome.code, outcome.errors) == (code, sentences)
    assert list_names(work_dir) == ["empty", "one", "pair.csv", "r.yaml"]


def test_extract_refuses_layer_without_tensor_output(work_dir: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("extract", "r.yaml", "--layer", "stage2.1.chunk", "--out", "a.npz")
    assert outcome.code == 2
    assert outcome.errors == [
        "--layer stage2.1.chunk: its output is a tuple of 2, not one tensor; choose a layer within it or after it"
    ]
    assert list_names(work_dir) == ["r.yaml"]


def test_extract_reports_unknown_classes(work_dir_with_run: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir_with_run / "field")
    for split in ("train", "test"):
        (work_dir_with_run / "field" / split / "flower").rename(work_dir_with_run / "field" / split / "tulip")
    before = list_names(work_dir_with_run)
    outcome = ftcli("extract", "best_loss.pt", "--data", "field", "--out", "a.npz")
    assert outcome.code == 4
    assert outcome.errors == [
        "runs/photos/best_loss.pt: was trained on other classes than those of field (missing there: flower; unknown "
        "to the checkpoint: tulip); give the data it was trained on, or train again"
    ]
    assert list_names(work_dir_with_run) == before


def test_extract_counts_corrupt_images(work_dir: Path, ftcli: Ftcli, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    (work_dir / "photos/train/china/3.jpg").write_bytes(b"no image")
    text = (work_dir / "r.yaml").read_text()
    outcome = ftcli("extract", "r.yaml", "--data", "photos", "--out", "a.npz")
    assert outcome.code == 3
    assert list_names(work_dir) == ["photos", "r.yaml"]
    (work_dir / "r.yaml").write_text(text.replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip"))
    result = ftcli("extract", "r.yaml", "--data", "photos", "--out", "a.npz", "--json").json
    assert result["images"] == 51
    assert len(result["skipped"]) == 1
    assert "photos/train/china/3.jpg" in result["skipped"][0]
    assert "train/china/3.jpg" not in read_npz("a.npz")["paths"]


def test_extract_stops_on_float16_overflow(work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(values: torch.Tensor, layer: LayerSpec, how: Pool | None) -> torch.Tensor:
        return pool_values(values, layer, how).clamp(min=0.1) * 1e6

    monkeypatch.setattr("ftcli.features.extractor.pool_values", pool)
    outcome = ftcli("extract", "r.yaml", "--out", "a.npz", "--dtype", "float16")
    assert outcome.code == 1
    (message,) = outcome.errors
    assert message.startswith("input of fc: the output for train/china/")
    assert message.endswith(", beyond the maximum of float16 (65504); use --dtype float32")
    assert list_names(work_dir) == ["r.yaml"]


@pytest.mark.parametrize(
    ("patched", "number", "code", "sentence"),
    [
        ((FeatureBuffer, "add"), signal.SIGTERM, 143, "terminated; the last saved files are complete"),
        ((ArrayStream, "write"), signal.SIGTERM, 143, "terminated; the last saved files are complete"),
        ((ArrayStream, "write"), signal.SIGINT, 130, "interrupted; the last saved files are complete"),
    ],
)
def test_extract_leaves_no_files_after_signal(
    work_dir: Path,
    ftcli: Ftcli,
    monkeypatch: pytest.MonkeyPatch,
    patched: tuple[type, str],
    number: signal.Signals,
    code: int,
    sentence: str,
) -> None:
    original = getattr(*patched)

    def call_and_stop(*arguments: Any) -> None:
        original(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(*patched, call_and_stop)
    monkeypatch.setenv("TMPDIR", str(work_dir))
    outcome = ftcli("extract", "r.yaml", "--out", "a.npz")
    assert (outcome.code, outcome.errors) == (code, [sentence])
    assert list_names(work_dir) == ["r.yaml"]


def test_extract_uses_given_batch_size_and_workers(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    class Watched(ImageLoader):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append((self.batch_size, self.num_workers))

    monkeypatch.setattr("ftcli.extraction.extract.ImageLoader", Watched)
    ftcli("extract", "r.yaml", "--out", "a.npz", "--batch-size", "5", "--num-workers", "2", "--no-cache")
    assert set(seen) == {(5, 2), (5, 1)}
    seen.clear()
    monkeypatch.setattr("ftcli.evaluation.head_features.ImageLoader", Watched)
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


def test_extract_measures_mean_and_std_as_training(work_dir: Path, ftcli: Ftcli) -> None:
    recipe = work_dir / "r.yaml"
    recipe.write_text(recipe.read_text().replace("augment:", "normalize: dataset\n  augment:"))
    ftcli("extract", "r.yaml", "--out", "a.npz")
    ftcli("train", "r.yaml", "--stage", "head", "--set", "stages.head.epochs=1")
    trained = ftcli("inspect", "best_loss.pt", "--json").json["preprocessing"]
    assert json.loads(str(read_npz("a.npz")["about"]))["preprocessing"] == trained


def test_extract_help_lists_all_choices(ftcli: Ftcli) -> None:
    result = ftcli("extract", "--help").out
    for option, known in (("--pool", get_args(Pool)), ("--dtype", get_args(FeatureDtype)), ("--probe", PROBES)):
        assert re.search(rf"{option} +{re.escape('|'.join(known))}\s", result), option
    assert set(LINEAR_PROBES) < set(PROBES)


def test_extract_table_fits_narrow_terminal() -> None:
    score = ProbeScore("rbf", "layer1", {"C": 0.01, "gamma": "scale"}, 5, 0.9, 30, None, 0.5, 0.25, 0.75, 12, 1.0, 0.5)
    layers = tuple(FeatureLayer(name, (64, 8, 8), (64,), depth) for name, depth in (("layer1", 0.1), ("layer2", 1.0)))
    scores = (score, replace(score, layer="layer2", cv_accuracy=0.8, test_accuracy=None, test_low=None, test_high=None))
    stream = io.StringIO()
    result = ExtractResult(
        "r.yaml", "none", None, "layer1", 52, 64, 1.0, score, layers, scores, splits={"train": 40, "test": 12}
    )
    print_extraction(Console(file=stream, width=60), result)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(map(len, lines)) <= 60
    assert lines == [
        "r.yaml: 52 images (train 40, test 12)",
        "weights: none",
        "",
        "accuracy of RBF SVM in %, by layer; * has the best",
        "cross-validation:",
        "layer  depth dimensions   cv val test 95% interval",
        "layer1   10%         64 90.0   - 50.0 25.0 to 75.0 *",
        "layer2  100%         64 80.0   -    - -",
        "",
        "RBF SVM on layer1: test accuracy 50.0% (95% interval 25.0 to",
        "75.0%) on 12 images; cross-validation accuracy 90.0%, C =",
        "0.01, gamma = scale",
        "always predicting the most frequent class: 50.0%",
    ]
