"""The report of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ftcli.data.samples import natural_key
from ftcli.evaluation.report import sentences
from ftcli.evaluation.report.plots import (
    CORRECT_COLOR,
    ERROR_COLOR,
    normalize_rows,
    plot_confusion_matrix,
    plot_history,
    plot_reliability,
)
from ftcli.evaluation.report.thumbnails import Thumbnail, make_thumbnail
from ftcli.files import atomic_write
from ftcli.results import METRIC_INFO, EpochMetrics, EvaluatedImage, EvaluateResult

MAX_TABLE_CLASSES = 15
"""The classes up to which the confusion matrix is a table; that of more is a picture."""


@dataclass(frozen=True)
class ReportContext:
    """What a report tells beside the evaluation itself.

    `source` says where the images are; their paths are relative to `root`. `recipe` is YAML. `rows` are the epochs of
    the run, none where it is not beside the checkpoint. `made` is a time as ISO 8601 writes it.
    """

    model: str
    weights: str
    stage: str
    epoch: int
    source: str
    root: Path
    split: str
    image_size: int
    device: str
    versions: dict[str, str]
    recipe: str
    history: tuple[EpochMetrics, ...]
    created_at: str


@dataclass(frozen=True)
class _ExampleCard:
    """An example with its picture."""

    example: EvaluatedImage
    thumbnail: Thumbnail
    alt_text: str


def write_report(evaluation: EvaluateResult, context: ReportContext, path: Path) -> None:
    """Write an evaluation as a page, whole or not at all.

    It opens without a network: plots, pictures, style and script are in it, and its content security policy lets
    nothing else in. Names are shown as text, whatever is in them. The same evaluation, background and image files give
    the same bytes. An image that can no longer be read is said so in its place. Raises RunError where the page cannot
    be written.
    """
    page = _render(evaluation, context)
    atomic_write(path, page.encode("utf-8", "backslashreplace"))


def _render(evaluation: EvaluateResult, context: ReportContext) -> str:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=sentences.escape_text,
        share=sentences.format_percent,
        figure=sentences.format_metric,
        goal=sentences.describe_goal,
    )
    script = (resources.files(__package__) / "templates/report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        background=context,
        script=Markup(script),  # our own; names never get into it
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_build_text_variables(evaluation, context),
        **_draw_plots(evaluation, context),
    )


def _build_text_variables(evaluation: EvaluateResult, context: ReportContext) -> dict[str, Any]:
    """The words and numbers of the page that are not in the evaluation as they stand."""
    sorted_indices = sorted(range(len(evaluation.classes)), key=lambda i: natural_key(evaluation.classes[i]))
    confusion = np.asarray(evaluation.confusion, dtype=np.int64)
    return {
        "summary": sentences.summarize_accuracy(evaluation),
        "confidence": sentences.describe_confidence(evaluation),
        "scaling": sentences.describe_temperature_scaling(evaluation.scaling) if evaluation.scaling else "",
        "meanings": METRIC_INFO,
        "wilsons": sentences.describe_wilson_intervals(evaluation.figures),
        "alike": any(figure.low is None and figure.value is not None for figure in evaluation.figures),
        "optimistic": any(threshold.chosen_on == evaluation.split for threshold in evaluation.thresholds),
        "places": {evaluation.classes[i]: rank for rank, i in enumerate(sorted_indices)},
        "shares": normalize_rows(confusion).tolist(),
        "colours": (CORRECT_COLOR, ERROR_COLOR),
        "stages": sentences.count_stage_epochs(context.history),
    }


def _draw_plots(evaluation: EvaluateResult, context: ReportContext) -> dict[str, Any]:
    """The plots and pictures of the page; empty where there is nothing to show."""
    return {
        "reliability": plot_reliability(evaluation.reliability) if evaluation.reliability else "",
        "matrix": plot_confusion_matrix(evaluation) if len(evaluation.classes) > MAX_TABLE_CLASSES else "",
        "progress": plot_history(context.history) if context.history else "",
        "mistakes": _make_cards(evaluation.worst, context.root),
        "doubts": _make_cards(evaluation.unsure, context.root),
    }


def _make_cards(examples: Iterable[EvaluatedImage], root: Path) -> list[_ExampleCard]:
    return [
        _ExampleCard(example, make_thumbnail(root / example.path), _describe_example(example)) for example in examples
    ]


def _describe_example(example: EvaluatedImage) -> str:
    """What stands for a picture where it is not seen."""
    path, label, predicted = map(sentences.isolate_text, (example.path, example.label, example.predicted))
    verdict = "rightly" if example.label == example.predicted else f"truly {label},"
    return f"{path}: {verdict} given {predicted} with {sentences.format_percent(example.probability)}"
