"""Plots show the data, in the colors of the page, with selectable text."""

from __future__ import annotations

import base64
import io
import re
import warnings
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ftcli.evaluation.report.plots import (
    CORRECT_COLOR,
    ERROR_COLOR,
    order_classes,
    plot_confusion_matrix,
    plot_history,
    plot_reliability,
)
from ftcli.results import ReliabilityBin
from tests.evaluation.report.conftest import create_evaluation, create_metrics, create_outputs


def read_texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_plots_use_text_elements_and_page_colors() -> None:
    bins = (ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 12, 0.8, 0.75))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = (plot_reliability(bins), plot_history(create_metrics()))
    for svg in plots:
        assert not re.search(r"#[0-9a-f]{6}", svg)
        assert "<style" not in svg
        assert "font-family" not in svg
        ids = re.findall(r'\bid="([^"]+)"', svg)
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert len(ids) == len(set(ids))
        assert {url_id or href_id for url_id, href_id in used} <= set(ids)
    assert not set(re.findall(r'\bid="([^"]+)"', plots[0])) & set(re.findall(r'\bid="([^"]+)"', plots[1]))
    assert "accuracy" in read_texts(plots[0])
    assert "12 images with mean confidence 80.0% and accuracy 75.0%" in plots[0]
    assert {"head", "all 全部", "training", "validation"} <= set(read_texts(plots[1]))


def test_plot_reliability_points() -> None:
    means = ((0.2, 0.1), (0.5, 0.7), (0.9, 0.8))
    svg = plot_reliability([ReliabilityBin(n / 3, (n + 1) / 3, 40, *pair) for n, pair in enumerate(means)])
    paths = [element.get("d", "") for element in ElementTree.fromstring(svg).iter("path")]
    lines = [[tuple(map(float, point.split())) for point in re.findall(r"[ML] ([-.0-9]+ [-.0-9]+)", d)] for d in paths]
    (curve,) = [line for line in lines if len(line) == len({y for _, y in line}) == 3]
    positions, expected = np.array(curve), np.array(means)
    for axis, min_scale in ((0, 200), (1, -100)):  # pixels from 0 to 1; y pixels grow downwards
        scale, start = np.polyfit(expected[:, axis], positions[:, axis], 1)
        assert np.allclose(scale * expected[:, axis] + start, positions[:, axis])
        assert scale / min_scale > 1


def test_plot_reliability_without_images() -> None:
    assert "<svg" in plot_reliability((ReliabilityBin(0.0, 1.0, 0, None, None),))


def test_order_classes_puts_confused_classes_together() -> None:
    confusion = np.eye(20, dtype=np.int64) * 10
    pairs = ((2, 17), (5, 11), (0, 9))
    for label, predicted in pairs:
        confusion[label, predicted] = 6
    order = order_classes(confusion)
    assert sorted(order) == list(range(20))
    for label, predicted in pairs:
        assert abs(order.index(label) - order.index(predicted)) == 1
    assert order_classes(np.zeros((4, 4), dtype=np.int64)) is not None
    assert order_classes(np.ones((2, 2), dtype=np.int64)) == [0, 1]


def test_plot_confusion_matrix_cells_are_row_fractions() -> None:
    labels, probabilities = create_outputs(600, 30, 0.7)
    labels = np.where(labels == 7, 8, labels)  # a row without images
    names = [f"name {i}" for i in range(29)] + ["a <b> & \udcff that is truncated in the plot"]
    evaluation = create_evaluation(names, ["x"] * 600, labels, probabilities)
    svg = plot_confusion_matrix(evaluation)
    (image_data,) = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image_data))))
    confusion = np.asarray(evaluation.confusion)
    order = order_classes(confusion)
    fractions = confusion[np.ix_(order, order)] / np.maximum(confusion[order].sum(1, keepdims=True), 1)
    assert pixels.shape == (30, 30, 4)
    assert np.array_equal(pixels[..., 3], np.round(255 * np.sqrt(fractions)))
    is_diagonal = np.eye(30, dtype=bool)
    assert {tuple(map(int, pixel[:3])) for pixel in pixels[(fractions > 0) & ~is_diagonal]} == {ERROR_COLOR}
    assert {tuple(map(int, pixel[:3])) for pixel in pixels[(fractions > 0) & is_diagonal]} == {CORRECT_COLOR}
    truncated = "a <b> & \\udcff that…"
    labels_in_order = [truncated if order[i] == 29 else names[order[i]] for i in range(30)]
    assert read_texts(svg) == labels_in_order * 2
