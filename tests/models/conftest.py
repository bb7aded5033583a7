"""Small true things that several tests of the models room use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional

from ftcli.results import NullReporter, Preprocessing


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these gain nothing from threads, and lose much where other work wants the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class RecordingReporter(NullReporter):
    """A Reporter that remembers what was said and what was warned of."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()


def load_photos(preprocessing: Preprocessing) -> torch.Tensor:
    """scikit-learn's two photographs, a temple and a dahlia, as a network wants them."""
    size = preprocessing.image_size
    images = [functional.to_tensor(image.copy()) for image in load_sample_images().images]
    cropped = [
        functional.center_crop(functional.resize(image, [preprocessing.resize_size], antialias=True), [size, size])
        for image in images
    ]
    normalized: torch.Tensor = functional.normalize(
        torch.stack(cropped), list(preprocessing.mean), list(preprocessing.std)
    )
    return normalized
