"""The report of an evaluation as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ftcli.data.images import CorruptImageError, read_rgb
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
from ftcli.files import atomic_write
from ftcli.results import (
    METRIC_INFO,
    EpochMetrics,
    EvaluatedImage,
    EvaluateResult,
    describe_confidence,
    describe_temperature_scaling,
    format_percent,
)

MAX_TABLE_CLASSES = 15
"""The confusion matrix is a table up to this number of classes, and a plot above."""
_MAX_THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class ReportContext:
    """Facts of a report that are not part of the evaluation.

    `source` names the images, `root` is the folder of their paths. `recipe` is YAML. `history` is empty if the
    checkpoint is outside a run directory. `created_at` is an ISO 8601 time.
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
class _Thumbnail:
    """A reduced image as a data: URL with its size in pixels, or the reason why it cannot be read."""

    data_url: str = ""
    width: int = 0
    height: int = 0
    error: str = ""


@dataclass(frozen=True)
class _ExampleCard:
    """An evaluated image with its thumbnail."""

    example: EvaluatedImage
    thumbnail: _Thumbnail
    alt_text: str


def write_report(evaluation: EvaluateResult, context: ReportContext, path: Path) -> None:
    """Write the report atomically.

    Plots, images, style and script are embedded, and the content security policy blocks everything else. Names are
    escaped. The same evaluation, context and image files give the same bytes. Images that can no longer be read are
    replaced by the reason. Raises RunError if the file cannot be written.
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
        escape_text=sentences.escape_text,
        percent=format_percent,
        metric=sentences.format_metric,
        goal=sentences.describe_goal,
    )
    script = (resources.files(__package__) / "templates/report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        context=context,
        script=Markup(script),  # safe: contains no names
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_build_text_variables(evaluation, context),
        **_build_image_variables(evaluation, context),
    )


def _build_text_variables(evaluation: EvaluateResult, context: ReportContext) -> dict[str, Any]:
    classes = evaluation.classes
    class_order = sorted(classes, key=natural_key)
    confusion = np.asarray(evaluation.confusion, dtype=np.int64)
    return {
        "summary": sentences.summarize_accuracy(evaluation),
        "confidence_sentence": describe_confidence(evaluation),
        "scaling_sentence": describe_temperature_scaling(evaluation.scaling) if evaluation.scaling else "",
        "metric_info": METRIC_INFO,
        "intervals_note": sentences.describe_intervals(evaluation.figures),
        "thresholds_are_biased": any(threshold.chosen_on == evaluation.split for threshold in evaluation.thresholds),
        "class_ranks": {name: rank for rank, name in enumerate(class_order)},
        "row_fractions": normalize_rows(confusion).tolist(),
        "cell_colors": (CORRECT_COLOR, ERROR_COLOR),
        "stage_epochs": sentences.count_stage_epochs(context.history),
    }


def _build_image_variables(evaluation: EvaluateResult, context: ReportContext) -> dict[str, Any]:
    """Return the plots and example cards of the page, empty if there is nothing to show."""
    return {
        "reliability_plot": plot_reliability(evaluation.reliability) if evaluation.reliability else "",
        "matrix_plot": plot_confusion_matrix(evaluation) if len(evaluation.classes) > MAX_TABLE_CLASSES else "",
        "history_plot": plot_history(context.history) if context.history else "",
        "errors": _make_cards(evaluation.worst, context.root),
        "unsure": _make_cards(evaluation.unsure, context.root),
    }


def _make_cards(examples: Iterable[EvaluatedImage], root: Path) -> list[_ExampleCard]:
    return [
        _ExampleCard(example, _make_thumbnail(root / example.path), sentences.describe_example(example))
        for example in examples
    ]


def _make_thumbnail(path: Path) -> _Thumbnail:
    """Return an image reduced to 160 pixels, as a JPEG; the same file gives the same bytes."""
    try:
        image = read_rgb(path)
    except CorruptImageError as error:
        return _Thumbnail(error=error.reason)
    image.thumbnail((_MAX_THUMBNAIL_SIDE, _MAX_THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data_url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return _Thumbnail(data_url, image.width, image.height)
