"""`ftcli.load`: a checkpoint in one's own program."""

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

import ftcli as package
from ftcli.data.images import CorruptImageError
from ftcli.errors import CheckpointError, FtcliError, RecipeError
from ftcli.evaluation.classifier import Classifier
from ftcli.results import Prediction
from ftcli.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.conftest import Ftcli


@pytest.fixture
def classifier(finished: Path) -> Classifier:
    return package.load("runs/photos/best_loss.pt")


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "test").rglob("*.jpg"))


def test_import_is_lazy() -> None:
    code = "import ftcli, sys; print(sorted({'torch', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_load_docstring_example_runs(finished: Path, classifier: Classifier, paths: list[Path]) -> None:
    # What was trained for seconds may see one class everywhere; between the extremes shall be the boundary.
    told = sorted(classifier.predict(paths), key=_probability_of_china)
    least, most = (
        math.log(share / (1 - share)) for share in (_probability_of_china(told[0]), _probability_of_china(told[-1]))
    )
    checkpoint = read_checkpoint(Path("runs/photos/best_loss.pt"))
    bias = next(name for name in reversed(list(checkpoint.state)) if name.endswith(".bias"))
    moved = checkpoint.state[bias] + torch.tensor([0.0, (least + most) / 2])
    write_checkpoint(replace(checkpoint, state={**checkpoint.state, bias: moved}), Path("runs/photos/best_loss.pt"))
    (finished / "photos").mkdir()
    shutil.copy(told[-1].path, finished / "photos/temple.jpg")
    shutil.copy(told[0].path, finished / "photos/tulip.jpg")
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
    told = ftcli("predict", "runs/photos/best_loss.pt", *paths, "--json").json["predictions"]
    assert [one.to_dict() for one in classifier.predict(paths, batch_size=8)] == told
    images = torch.stack([classifier.preprocess(path) for path in paths])
    assert (images.dtype, images.shape) == (torch.uint8, (12, 3, 32, 32))
    with torch.inference_mode():
        logits = classifier.model(classifier.normalize(images.to(classifier.device)))
    for shares, one in zip(logits.softmax(1), told, strict=True):
        by_name = {guess["name"]: guess["probability"] for guess in one["classes"]}
        assert shares.tolist() == pytest.approx([by_name["china"], by_name["flower"]], abs=1e-6)


def test_preprocess_gives_same_pixels_for_image_and_path(
    classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    with Image.open(paths[0]) as opened:
        assert torch.equal(classifier.preprocess(opened), classifier.preprocess(paths[0]))
        (one,) = classifier.predict([opened], top=1)
    assert one == classifier.predict([paths[0]], top=1)[0]
    assert one.path == str(paths[0])
    made = Image.new("RGBA", (50, 40), (255, 0, 0, 0))
    assert classifier.preprocess(made).min() == 255  # what is transparent is put on white
    mixed: list[Image.Image | Path] = [made, paths[1]]
    assert [told.path for told in classifier.predict(iter(mixed))] == ["", str(paths[1])]
    assert classifier.predict([]) == []


def test_predict_keeps_order_of_tied_classes(classifier: Classifier) -> None:
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            parameter.zero_()
    (one,) = classifier.predict([Image.new("RGB", (9, 9))])
    assert one == Prediction("", one.classes)
    assert [(guess.name, guess.probability) for guess in one.classes] == [("china", 0.5), ("flower", 0.5)]


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
    with pytest.raises(CorruptImageError) as broken:
        classifier.predict([tmp_path / "x.jpg"])
    assert broken.value.reason == "is not a readable image"
    with pytest.raises(CorruptImageError, match=r"^image: has floating-point pixels, which have no defined range; "):
        classifier.preprocess(Image.new("F", (5, 5)))
    assert isinstance(broken.value, FtcliError)


def _probability_of_china(prediction: Prediction) -> float:
    return next(guess.probability for guess in prediction.classes if guess.name == "china")


def test_predict_rejects_invalid_arguments(classifier: Classifier, paths: list[Path]) -> None:
    with pytest.raises(TypeError) as wrong:
        classifier.predict([str(paths[0])])  # type: ignore[list-item]  # what many would try
    assert str(wrong.value) == "an image is a pathlib.Path or a PIL image, not str; make it one of them"
    for top, batch_size in ((0, 8), (1, 0), (1, -1)):
        with pytest.raises(ValueError, match="at least 1") as low:
            classifier.predict(paths, top, batch_size)
        assert str(low.value) == f"top and batch_size are at least 1, not {top} and {batch_size}"
