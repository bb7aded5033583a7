"""A stream of predictions: as they are asked for, in order, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ftcli.data.finding import Found
from ftcli.inference.classifier import Classifier
from ftcli.inference.prediction import stream_predictions
from ftcli.results import Failure, Prediction, Preprocessing, Progress, Silent

PRE = Preprocessing(8, 8, "squash", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.said: list[str] = []
        self.progress: list[Progress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def advance(self, progress: Progress) -> None:
        self.progress.append(progress)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Tells red from green from blue: its logits are ten times the mean of each channel."""
    scale = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        scale.weight.copy_(10 * torch.eye(3)[:, :, None, None])
    model = nn.Sequential(scale, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Classifier.place(model, PRE, ("red", "green", "blue"), torch.device("cpu"), "float32")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (9, 9), name).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_come_before_the_last_is_known(classifier: Classifier, colours: Path, num_workers: int) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(colours / ("red.png", "lime.png", "blue.png")[taken % 3])

    stream = stream_predictions(classifier, Found(endless(), None), 3, 4, num_workers, Silent())
    first = list(islice(stream, 40))
    assert [outcome.classes[0].name for outcome in first if isinstance(outcome, Prediction)] == (
        ["green", "blue", "red"] * 14
    )[:40]
    assert taken <= 40 + 4 * (1 + 2 * max(1, num_workers))
    stream.close()  # type: ignore[attr-defined]  # it is a generator, and ends its processes


def test_order_failures_and_progress(classifier: Classifier, colours: Path) -> None:
    names = ["red.png", "broken.png", "blue.png", "lime.png", "gone.png", "red.png", "red.png"]
    recorder = Recorder()
    found = Found((str(colours / name) for name in names), len(names))
    outcomes = list(stream_predictions(classifier, found, 2, 3, 0, recorder))
    assert [Path(outcome.path).name for outcome in outcomes if isinstance(outcome, Prediction)] == [
        name for name in names if name not in ("broken.png", "gone.png")
    ]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert failures == [
        Failure(str(colours / "broken.png"), "is no image that can be read"),
        Failure(str(colours / "gone.png"), "cannot be opened (No such file or directory)"),
    ]
    assert recorder.warnings == [f"{failure.path}: {failure.why}" for failure in failures]
    assert [(told.done, told.total) for told in recorder.progress] == [(3, 7), (6, 7), (7, 7)]
    (said,) = recorder.said
    assert said.startswith("7 images in 1 s, ")
    first = outcomes[1]
    assert isinstance(first, Prediction)
    red, rest = torch.tensor([10.0, 0.0, 0.0]).softmax(0)[:2].tolist()
    assert [guess.name for guess in first.classes] == ["red", "green"]
    assert [guess.probability for guess in first.classes] == pytest.approx([red, rest])
    assert not torch.is_inference_mode_enabled()
