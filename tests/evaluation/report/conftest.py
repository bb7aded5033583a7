"""Evaluations of real images with made-up outputs, and a browser that opens reports."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ftcli.evaluation.report.page import ReportContext
from ftcli.results import (
    METRIC_INFO,
    ClassMetrics,
    ConfusedPair,
    EpochMetrics,
    EvaluatedImage,
    EvaluateResult,
    Metric,
    ReliabilityBin,
    Threshold,
)
from ftcli.statistics import wilson_interval


def create_outputs(
    num_images: int, num_classes: int, accuracy: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Create true labels and probabilities with about the given accuracy."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_images)
    logits = generator.normal(size=(num_images, num_classes))
    predicted = (labels + generator.choice([0, 1], p=[accuracy, 1 - accuracy], size=num_images)) % num_classes
    logits[np.arange(num_images), predicted] += generator.normal(4, 1.5, size=num_images)
    logits -= logits.max(1, keepdims=True)
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def create_evaluation(
    classes: Sequence[str], paths: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> EvaluateResult:
    """Create the evaluation of these outputs; intervals other than Wilson's are made up."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    correct = predicted == labels
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    class_metrics = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0.0)
    bounds = [
        wilson_interval(int(row[i]), int(row.sum())) if row.sum() else (None, None) for i, row in enumerate(counts)
    ]
    examples = [
        EvaluatedImage(path, classes[t], classes[g], float(p))
        for path, t, g, p in zip(paths, labels, predicted, confidence, strict=True)
    ]
    pairs = sorted(((int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j), reverse=True)[:10]
    accuracy = float(correct.mean())
    low, high = wilson_interval(int(correct.sum()), len(labels))
    other_metrics = [name for name in METRIC_INFO if name not in ("accuracy", "top_5_accuracy")]
    return EvaluateResult(
        checkpoint=Path("runs/photos/best_loss.pt"),
        split="test",
        images=len(labels),
        loss=0.4,
        accuracy=accuracy,
        figures=(
            Metric("accuracy", accuracy, low, high, "wilson"),
            *(Metric(name, 0.5, 0.4, 0.6, "bca") for name in other_metrics[:-1]),
            Metric(other_metrics[-1], None, None, None, "bca"),
        ),
        per_class=tuple(
            ClassMetrics(name, int(n), float(p), float(r), float(f), bound[0], bound[1], 0.9, None)
            for name, p, r, f, n, bound in zip(classes, *class_metrics, bounds, strict=True)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
        classes=tuple(classes),
        calibration={"expected_calibration_error": 0.05, "mean_confidence": float(confidence.mean())},
        reliability=tuple(_create_bin(low, confidence, correct) for low in range(15)),
        worst=tuple(sorted((e for e in examples if e.label != e.predicted), key=lambda e: -e.probability)[:10]),
        unsure=tuple(sorted((e for e in examples if e.label == e.predicted), key=lambda e: e.probability)[:10]),
        confused=tuple(ConfusedPair(classes[i], classes[j], n, n / max(1, int(counts[i].sum()))) for n, i, j in pairs),
        thresholds=()
        if len(classes) != 2
        else tuple(Threshold(name, "recall", 0.95, 0.31, 0.7, 0.96, 0.81, "val") for name in classes),
    )


def _create_bin(index: int, confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> ReliabilityBin:
    low, high = index / 15, (index + 1) / 15
    inside = (confidence > low) & (confidence <= high)
    means = (float(confidence[inside].mean()), float(correct[inside].mean())) if inside.any() else (None, None)
    return ReliabilityBin(low, high, int(inside.sum()), *means)


def create_report_context(root: Path, metrics: tuple[EpochMetrics, ...] = ()) -> ReportContext:
    return ReportContext(
        model="shufflenet_v2_x0_5",
        weights="none",
        stage="all",
        epoch=3,
        source=str(root),
        root=root,
        split="test",
        image_size=32,
        device="cpu",
        versions={"ftcli": "0.3", "torch": "2.14.1"},
        recipe="name: photos\ndata: {root: a\udcff <b>}\n",
        history=metrics,
        created_at="2030-01-02T03:04:05+00:00",
    )


def create_metrics() -> tuple[EpochMetrics, ...]:
    """Create the history of a run of two stages with three epochs each."""
    metrics = []
    for stage, start in (("head", 0.9), ("all 全部", 0.6)):
        for epoch in range(4):
            loss = start * 0.8**epoch
            train = (loss + 0.1, 0.9 - loss / 2) if epoch else (None, None)
            metrics.append(EpochMetrics(stage, epoch, train[0], train[1], loss, 1 - loss / 2, 0.01, 1.0, 100.0))
    return tuple(metrics)


@dataclass(frozen=True)
class Browser:
    """Headless Chromium, without a network."""

    program: str
    profile: Path

    def open(self, page: Path, *flags: str) -> tuple[str, list[str]]:
        """Return the document after its scripts ran, and the messages of the console."""
        done = subprocess.run(
            [
                self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                f"--user-data-dir={self.profile}", "--host-resolver-rules=MAP * ~NOTFOUND",
                "--virtual-time-budget=2000", "--enable-logging=stderr", "--v=0", "--window-size=1500,900", *flags,
                "--dump-dom", page.as_uri(),
            ],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser found; install chromium to test the report in it")
    return Browser(program, tmp_path_factory.mktemp("profile"))
