"""Tests of the Python API: `ftcli.load` and the classifier that it returns."""

from __future__ import annotations

import doctest
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import fx, nn

import ftcli as package
from ftcli import planning
from ftcli.data.images import CorruptImageError
from ftcli.errors import CheckpointError, FtcliError, RecipeError
from ftcli.evaluation.classifier import Classifier
from ftcli.results import Prediction
from ftcli.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.conftest import Ftcli


@pytest.fixture
def classifier(work_dir_with_run: Path) -> Classifier:
    return package.load("runs/photos/best_loss.pt")


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "test").rglob("*.jpg"))


def test_import_is_lazy() -> None:
    code = "import ftcli, sys; print(sorted({'torch', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("configuration", "shown"),
    [("", ""), ("logging.basicConfig(level=logging.INFO); ", "INFO:ftcli.x:100% a\nWARNING:ftcli.x:b\n")],
)
def test_messages_are_shown_only_if_logging_is_configured(configuration: str, shown: str) -> None:
    emit = "logger = logging.getLogger('ftcli.x'); logger.info('100% a'); logger.warning('b')"
    code = f"import ftcli, logging; {configuration}{emit}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", shown)


def test_load_docstring_example_runs(work_dir_with_run: Path, classifier: Classifier, paths: list[Path]) -> None:
    # After a few seconds of training one class may win everywhere: move the decision boundary between the extremes.
    predictions = sorted(classifier.predict(paths), key=_probability_of_china)
    lowest, highest = (
        math.log(p / (1 - p)) for p in (_probability_of_china(predictions[0]), _probability_of_china(predictions[-1]))
    )
    checkpoint = read_checkpoint(Path("runs/photos/best_loss.pt"))
    bias = next(name for name in reversed(list(checkpoint.state)) if name.endswith(".bias"))
    shifted = checkpoint.state[bias] + torch.tensor([0.0, (lowest + highest) / 2])
    write_checkpoint(replace(checkpoint, state={**checkpoint.state, bias: shifted}), Path("runs/photos/best_loss.pt"))
    (work_dir_with_run / "photos").mkdir()
    shutil.copy(predictions[-1].path, work_dir_with_run / "photos/temple.jpg")
    shutil.copy(predictions[0].path, work_dir_with_run / "photos/tulip.jpg")
    example = doctest.DocTestFinder().find(package.load, globs={})
    assert len(example) == 1
    assert len(example[0].examples) == 8
    report: list[str] = []
    result = doctest.DocTestRunner().run(example[0], out=report.append)
    assert result.failed == 0, "".join(report)


def test_load_matches_predict_command(ftcli: Ftcli, classifier: Classifier, paths: list[Path]) -> None:
    assert classifier.classes == ("china", "flower")
    assert not classifier.model.training
    assert classifier.preprocessing.image_size == 32
    expected = ftcli("predict", "runs/photos/best_loss.pt", *paths, "--json").json["predictions"]
    assert [prediction.to_dict() for prediction in classifier.predict(paths, batch_size=8)] == expected
    images = torch.stack([classifier.preprocess(path) for path in paths])
    assert (images.dtype, images.shape) == (torch.uint8, (12, 3, 32, 32))
    with torch.inference_mode():
        logits = classifier.model(classifier.normalize(images.to(classifier.device)))
    for probabilities, prediction in zip(logits.softmax(1), expected, strict=True):
        by_name = {score["name"]: score["probability"] for score in prediction["classes"]}
        assert probabilities.tolist() == pytest.approx([by_name["china"], by_name["flower"]], abs=1e-6)


def test_preprocess_gives_same_pixels_for_image_and_path(
    classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    with Image.open(paths[0]) as opened:
        assert torch.equal(classifier.preprocess(opened), classifier.preprocess(paths[0]))
        (prediction,) = classifier.predict([opened], top=1)
    assert prediction == classifier.predict([paths[0]], top=1)[0]
    assert prediction.path == str(paths[0])
    transparent = Image.new("RGBA", (50, 40), (255, 0, 0, 0))
    assert classifier.preprocess(transparent).min() == 255  # transparent pixels become white
    mixed: list[Image.Image | Path] = [transparent, paths[1]]
    assert [prediction.path for prediction in classifier.predict(iter(mixed))] == ["", str(paths[1])]
    assert classifier.predict([]) == []


def test_predict_orders_tied_classes_as_in_checkpoint(classifier: Classifier) -> None:
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            parameter.zero_()
    (prediction,) = classifier.predict([Image.new("RGB", (9, 9))])
    assert prediction == Prediction("", prediction.classes)
    assert [(score.name, score.probability) for score in prediction.classes] == [("china", 0.5), ("flower", 0.5)]


def test_load_neither_plans_nor_runs_network(work_dir_with_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((planning, "plan_recipe"), (fx.Tracer, "trace"), (nn.Module, "__call__")):
        monkeypatch.setattr(owner, name, lambda *_args, name=name, **_kwargs: pytest.fail(f"{name} was called"))
    assert package.load("runs/photos/best_loss.pt").classes == ("china", "flower")


def test_load_rejects_unknown_head_path(work_dir_with_run: Path) -> None:
    path = Path("runs/photos/best_loss.pt")
    write_checkpoint(replace(read_checkpoint(path), head_path="stage9"), path)
    with pytest.raises(CheckpointError) as error:
        package.load(path)
    assert str(error.value) == (
        f"{path}: does not fit shufflenet_v2_x0_5, whose module 'stage9' is not a head; use another checkpoint"
    )


def test_load_reports_unreadable_files(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as missing:
        package.load(tmp_path / "none.pt")
    assert str(missing.value) == (
        f"{tmp_path}/none.pt: cannot be read (No such file or directory); give a checkpoint that ftcli train wrote, "
        "such as runs/NAME/best_loss.pt"
    )
    with pytest.raises(RecipeError, match="'gpu' is not a device"):
        package.load("runs/photos/best_loss.pt", device="gpu")
    (tmp_path / "x.jpg").write_bytes(b"GIF89a")
    with pytest.raises(CorruptImageError) as corrupt:
        classifier.predict([tmp_path / "x.jpg"])
    assert corrupt.value.reason == "is not a readable image"
    with pytest.raises(CorruptImageError, match=r"^image: has floating-point pixels, which have no defined range; "):
        classifier.preprocess(Image.new("F", (5, 5)))
    assert isinstance(corrupt.value, FtcliError)


def _probability_of_china(prediction: Prediction) -> float:
    return next(score.probability for score in prediction.classes if score.name == "china")


def test_predict_rejects_invalid_arguments(classifier: Classifier, paths: list[Path]) -> None:
    with pytest.raises(TypeError) as wrong_type:
        classifier.predict([str(paths[0])])  # type: ignore[list-item]
    assert str(wrong_type.value) == "images must be pathlib.Path or PIL.Image.Image, not str; convert them"
    for top, batch_size in ((0, 8), (1, 0), (1, -1)):
        with pytest.raises(ValueError, match="at least 1") as too_low:
            classifier.predict(paths, top, batch_size)
        assert str(too_low.value) == f"top and batch_size must be at least 1, not {top} and {batch_size}"
