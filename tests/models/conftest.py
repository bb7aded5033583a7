"""Fixtures of the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional

from ftcli.results import Preprocessing


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    """Use one thread: small tensors gain nothing from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def load_photos(preprocessing: Preprocessing) -> torch.Tensor:
    """Return scikit-learn's two photographs, a temple and a dahlia, preprocessed."""
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
