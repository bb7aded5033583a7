"""A stream of predictions: as they are asked for, in order, however many there are."""

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
from tests.conftest import RecordingReporter

PREPROCESSING = Preprocessing(8, 8, "squash", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Tells red from green from blue: its logits are ten times the mean of each channel."""
    scale = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        scale.weight.copy_(10 * torch.eye(3)[:, :, None, None])
    model = nn.Sequential(scale, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Classifier.create(model, PREPROCESSING, ("red", "green", "blue"), torch.device("cpu"), "float32")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (9, 9), name).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_predictions_is_lazy(classifier: Classifier, colours: Path, num_workers: int) -> None:
    num_taken = 0

    def endless() -> Iterator[str]:
        nonlocal num_taken
        while True:
            num_taken += 1
            yield str(colours / ("red.png", "lime.png", "blue.png")[num_taken % 3])

    stream = stream_predictions(classifier, InputPaths(endless(), None), 3, 4, num_workers, NullReporter())
    first = list(islice(stream, 40))
    assert [outcome.classes[0].name for outcome in first if isinstance(outcome, Prediction)] == (
        ["green", "blue", "red"] * 14
    )[:40]
    assert num_taken <= 40 + 4 * (1 + 2 * max(1, num_workers))
    stream.close()  # type: ignore[attr-defined]  # it is a generator, and ends its processes


def test_stream_predictions_order_failures_and_progress(classifier: Classifier, colours: Path) -> None:
    names = ["red.png", "broken.png", "blue.png", "lime.png", "gone.png", "red.png", "red.png"]
    reporter = RecordingReporter()
    input_paths = InputPaths((str(colours / name) for name in names), len(names))
    outcomes = list(stream_predictions(classifier, input_paths, 2, 3, 0, reporter))
    assert [Path(outcome.path).name for outcome in outcomes if isinstance(outcome, Prediction)] == [
        name for name in names if name not in ("broken.png", "gone.png")
    ]
    failures = [outcome for outcome in outcomes if isinstance(outcome, PredictionError)]
    assert failures == [
        PredictionError(str(colours / "broken.png"), "is not a readable image"),
        PredictionError(str(colours / "gone.png"), "cannot be opened (No such file or directory)"),
    ]
    assert reporter.warnings == [f"{failure.path}: {failure.why}" for failure in failures]
    assert [(progress.done, progress.total) for progress in reporter.progress] == [(3, 7), (6, 7), (7, 7)]
    (message,) = reporter.messages
    assert message.startswith("7 images in 1 s, ")
    first = outcomes[1]
    assert isinstance(first, Prediction)
    red, rest = torch.tensor([10.0, 0.0, 0.0]).softmax(0)[:2].tolist()
    assert [score.name for score in first.classes] == ["red", "green"]
    assert [score.probability for score in first.classes] == pytest.approx([red, rest])
    assert not torch.is_inference_mode_enabled()
