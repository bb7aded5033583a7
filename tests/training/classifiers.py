"""A small classifier and a fake clock for tests of precision and compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ftcli.evaluation.classifier import Classifier
from ftcli.results import Preprocessing

CPU = torch.device("cpu")


def fake_clock(*durations: float) -> Callable[[], float]:
    """Return a clock that gives consecutive measurements these durations in seconds."""
    times = [
        time for index, _ in enumerate(durations) for time in (sum(durations[:index]), sum(durations[: index + 1]))
    ]
    return iter(times).__next__


def build_classifier() -> Classifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(8, 3))
    return Classifier.create(
        model, Preprocessing(16, 16, "squash", "bilinear", (0,) * 3, (1,) * 3), ("a", "b", "c"), CPU, "auto"
    )
