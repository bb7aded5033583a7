"""Plots show the figures, in the page's colours, with words that are text."""

from __future__ import annotations

import base64
import io
import re
import warnings
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ftcli.analysis.report.plots import HIT, MISS, draw_matrix, draw_progress, draw_reliability, order_classes
from ftcli.results import ReliabilityBin
from tests.analysis.conftest import imagine_outputs, make_evaluation, make_rows


def read_words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_plots_have_words_as_text_and_the_colours_of_the_page() -> None:
    bins = (ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 12, 0.8, 0.75))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = (draw_reliability(bins), draw_progress(make_rows()))
    for svg in plots:
        assert not re.search(r"#[0-9a-f]{6}", svg)
        assert "<style" not in svg
        assert "font-family" not in svg
        ids = re.findall(r'\bid="([^"]+)"', svg)
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert len(ids) == len(set(ids))
        assert {one or two for one, two in used} <= set(ids)
    assert not set(re.findall(r'\bid="([^"]+)"', plots[0])) & set(re.findall(r'\bid="([^"]+)"', plots[1]))
    assert "share that is right" in read_words(plots[0])
    assert "12 images held 80.0\N{NO-BREAK SPACE}% probable, 75.0\N{NO-BREAK SPACE}% of them right" in plots[0]
    assert {"head", "all 全部", "training", "validation"} <= set(read_words(plots[1]))


def test_points_are_where_probabilities_and_shares_put_them() -> None:
    means = ((0.2, 0.1), (0.5, 0.7), (0.9, 0.8))
    svg = draw_reliability([ReliabilityBin(n / 3, (n + 1) / 3, 40, *pair) for n, pair in enumerate(means)])
    paths = [element.get("d", "") for element in ElementTree.fromstring(svg).iter("path")]
    lines = [[tuple(map(float, point.split())) for point in re.findall(r"[ML] ([-.0-9]+ [-.0-9]+)", d)] for d in paths]
    (drawn,) = [line for line in lines if len(line) == len({y for _, y in line}) == 3]
    places, given = np.array(drawn), np.array(means)
    for axis, least in ((0, 200), (1, -100)):  # pixels from 0 to 1; downwards they grow
        scale, start = np.polyfit(given[:, axis], places[:, axis], 1)
        assert np.allclose(scale * given[:, axis] + start, places[:, axis])
        assert scale / least > 1


def test_no_image_at_all_is_drawn_too() -> None:
    assert "<svg" in draw_reliability((ReliabilityBin(0.0, 1.0, 0, None, None),))


def test_classes_that_are_confused_stand_side_by_side() -> None:
    confusion = np.eye(20, dtype=np.int64) * 10
    for one, other in ((2, 17), (5, 11), (0, 9)):
        confusion[one, other] = 6
    order = order_classes(confusion)
    assert sorted(order) == list(range(20))
    for one, other in ((2, 17), (5, 11), (0, 9)):
        assert abs(order.index(one) - order.index(other)) == 1
    assert order_classes(np.zeros((4, 4), dtype=np.int64)) is not None
    assert order_classes(np.ones((2, 2), dtype=np.int64)) == [0, 1]


def test_the_cells_of_the_matrix_are_the_shares_of_its_rows() -> None:
    labels, probabilities = imagine_outputs(600, 30, 0.7)
    labels = np.where(labels == 7, 8, labels)  # a row without images
    names = [f"name {i}" for i in range(29)] + ["a <b> & \udcff that is far too long to be drawn"]
    evaluation = make_evaluation(names, ["x"] * 600, labels, probabilities)
    svg = draw_matrix(evaluation)
    (found,) = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found))))
    confusion = np.asarray(evaluation.confusion)
    order = order_classes(confusion)
    shares = confusion[np.ix_(order, order)] / np.maximum(confusion[order].sum(1, keepdims=True), 1)
    assert pixels.shape == (30, 30, 4)
    assert np.array_equal(pixels[..., 3], np.round(255 * np.sqrt(shares)))
    wrong = (shares > 0) & ~np.eye(30, dtype=bool)
    assert {tuple(map(int, pixel[:3])) for pixel in pixels[wrong]} == {MISS}
    right = (shares > 0) & np.eye(30, dtype=bool)
    assert {tuple(map(int, pixel[:3])) for pixel in pixels[right]} == {HIT}
    cut = "a <b> & \\udcff that…"
    drawn = [cut if order[i] == 29 else names[order[i]] for i in range(30)]
    assert read_words(svg) == drawn * 2
