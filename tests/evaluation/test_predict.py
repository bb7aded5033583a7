"""Predictions are streamed lazily, in the order of the images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ftcli.data.input_paths import InputPaths
from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.predict import stream_predictions
from ftcli.results import NullReporter, Prediction, PredictionError, Preprocessing
from tests.conftest import LibraryLog, RecordingReporter

PREPROCESSING = Preprocessing(8, 8, "squash", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Create a classifier of red, green and blue whose logits are ten times the channel means."""
    scale = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        scale.weight.copy_(10 * torch.eye(3)[:, :, None, None])
    model = nn.Sequential(scale, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Classifier.create(model, PREPROCESSING, ("red", "green", "blue"), torch.device("cpu"), "float32")


@pytest.fixture
def color_folder(tmp_path: Path) -> Path:
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (9, 9), name).save(tmp_path / f"{name}.png")
    (tmp_path / "corrupt.png").write_bytes(b"nothing")
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_predictions_is_lazy(classifier: Classifier, color_folder: Path, num_workers: int) -> None:
    num_taken = 0

    def endless_paths() -> Iterator[str]:
        nonlocal num_taken
        while True:
            num_taken += 1
            yield str(color_folder / ("red.png", "lime.png", "blue.png")[num_taken % 3])

    stream = stream_predictions(classifier, InputPaths(endless_paths(), None), 3, 4, num_workers, NullReporter())
    first = list(islice(stream, 40))
    assert [outcome.classes[0].name for outcome in first if isinstance(outcome, Prediction)] == (
        ["green", "blue", "red"] * 14
    )[:40]
    assert num_taken <= 40 + 4 * (1 + 2 * max(1, num_workers))
    stream.close()  # type: ignore[attr-defined]  # a generator, which stops its worker processes


def test_stream_predictions_orders_predictions_and_errors(
    classifier: Classifier, color_folder: Path, log: LibraryLog
) -> None:
    names = ["red.png", "corrupt.png", "blue.png", "lime.png", "gone.png", "red.png", "red.png"]
    reporter = RecordingReporter()
    input_paths = InputPaths((str(color_folder / name) for name in names), len(names))
    outcomes = list(stream_predictions(classifier, input_paths, 2, 3, 0, reporter))
    assert [Path(outcome.path).name for outcome in outcomes if isinstance(outcome, Prediction)] == [
        name for name in names if name not in ("corrupt.png", "gone.png")
    ]
    errors = [outcome for outcome in outcomes if isinstance(outcome, PredictionError)]
    assert errors == [
        PredictionError(str(color_folder / "corrupt.png"), "is not a readable image"),
        PredictionError(str(color_folder / "gone.png"), "cannot be opened (No such file or directory)"),
    ]
    assert log.warnings == [f"{error.path}: {error.why}" for error in errors]
    assert [(progress.done, progress.total) for progress in reporter.progress] == [(3, 7), (6, 7), (7, 7)]
    (message,) = log.messages
    assert message.startswith("7 images in 1 s, ")
    first = outcomes[1]
    assert isinstance(first, Prediction)
    red, rest = torch.tensor([10.0, 0.0, 0.0]).softmax(0)[:2].tolist()
    assert [score.name for score in first.classes] == ["red", "green"]
    assert [score.probability for score in first.classes] == pytest.approx([red, rest])
    assert not torch.is_inference_mode_enabled()
