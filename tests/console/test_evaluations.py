"""Tests of the tables of `ftcli evaluate`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ftcli.console.evaluations import print_evaluation
from ftcli.results import ClassMetrics, ConfusedPair, EvaluateResult, Metric


def create_evaluation(classes: int, mean_confidence: float = 0.9, calibration_error: float = 0.0) -> EvaluateResult:
    """Return an evaluation of 100 images per class, ten of them predicted as the previous class."""
    names = tuple(f"class {number}" for number in range(classes))
    rows = [[90 if i == j else 10 if j == (i - 1) % classes else 0 for j in range(classes)] for i in range(classes)]
    return EvaluateResult(
        checkpoint=Path("my run/best_loss.pt"),
        split="test",
        images=100 * classes,
        loss=0.3,
        accuracy=0.9,
        figures=(
            Metric("accuracy", 0.9, 0.87, 0.92, "wilson"),
            Metric("roc_auc", None, None, None, "bca"),
            Metric(
                "expected_calibration_error",
                calibration_error + 0.01,
                calibration_error,
                calibration_error + 0.02,
                "bca",
            ),
        ),
        per_class=tuple(ClassMetrics(name, 100, 0.9, 0.9, 0.9, 0.83, 0.94, 0.97, 0.95) for name in names),
        confusion=tuple(map(tuple, rows)),
        classes=names,
        calibration={"expected_calibration_error": calibration_error + 0.01, "mean_confidence": mean_confidence},
        reliability=(),
        worst=(),
        unsure=(),
        confused=(ConfusedPair("class 1", "class 0", 10, 0.1),),
    )


def render(evaluation: EvaluateResult, width: int = 120) -> list[str]:
    stream = io.StringIO()
    print_evaluation(Console(file=stream, width=width, markup=False, highlight=False, emoji=False), evaluation)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_print_evaluation_shows_intervals() -> None:
    lines = render(create_evaluation(3))
    assert lines[:6] == [
        "my run/best_loss.pt on test:",
        "accuracy 90.0%, loss 0.3000, 300 images",
        "metric             value    95% interval",
        "Accuracy           0.900  0.870 to 0.920",
        "ROC AUC                -               -",
        "Calibration error  0.010  0.000 to 0.020",
    ]


@pytest.mark.parametrize(
    ("classes", "width", "shown"), [(12, 160, True), (13, 160, False), (5, 60, True), (8, 60, False)]
)
def test_print_evaluation_omits_wide_confusion_matrix(classes: int, width: int, shown: bool) -> None:
    lines = render(create_evaluation(classes), width)
    assert ("confusion matrix (rows: true class, columns: predicted):" in lines) == shown
    start = lines.index("most frequent errors:")
    assert lines[start + 2].split() == ["class", "1", "class", "0", "10", "10.0%"]
    assert all(len(line) <= width for line in lines if not line.startswith(("Mean confidence", "next:")))


def test_print_evaluation_shows_all_class_metrics_if_wide() -> None:
    wide, narrow = render(create_evaluation(3)), render(create_evaluation(3), 80)
    row = "class 0      100      0.900   0.900  0.900"
    assert f"{row}          0.830 to 0.940    0.970              0.950" in wide
    assert any(" ".join(line.split()) == " ".join(row.split()) for line in narrow)


@pytest.mark.parametrize(
    ("mean_confidence", "verdict"),
    [
        (0.95, "the model is overconfident"),
        (0.8, "the model is underconfident"),
        (0.88, "no significant difference"),
    ],
)
def test_print_evaluation_compares_confidence_with_accuracy(mean_confidence: float, verdict: str) -> None:
    assert f"Mean confidence {mean_confidence:.1%}, accuracy 90.0%: {verdict}." in render(
        create_evaluation(3, mean_confidence=mean_confidence)
    )


def test_print_evaluation_suggests_commands() -> None:
    command = "next: ftcli evaluate 'my run/best_loss.pt'"
    assert render(create_evaluation(3))[-1:] == [f"{command} --report report.html"]
    miscalibrated = create_evaluation(3, calibration_error=0.05)
    assert render(miscalibrated)[-2:] == [f"{command} --calibrate", f"{command} --report report.html"]
    assert render(replace(miscalibrated, report=Path("r.html")))[-2:] == ["report: r.html", f"{command} --calibrate"]
