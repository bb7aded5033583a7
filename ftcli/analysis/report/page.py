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

from ftcli.analysis.report import sentences
from ftcli.analysis.report.plots import HIT, MISS, draw_matrix, draw_progress, draw_reliability, share_rows
from ftcli.analysis.report.thumbnails import Thumbnail, make_thumbnail
from ftcli.data.sources import natural_key
from ftcli.errors import RecipeError
from ftcli.results import EpochRow, Evaluation, Example
from ftcli.storage import check_place, replace_file

MOST_CELLS = 15
"""The classes up to which the confusion matrix is a table; that of more is a picture."""


@dataclass(frozen=True)
class Background:
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
    rows: tuple[EpochRow, ...]
    made: str


@dataclass(frozen=True)
class _Card:
    """An example with its picture."""

    example: Example
    thumbnail: Thumbnail
    words: str


def check_report(target: Path) -> None:
    """Raise RecipeError unless a report can be written there."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"--report: {target} does not end in .html or .htm; give such a name")
    if not target.parent.is_dir():
        raise RecipeError(f"--report: the folder {target.parent} is not there; make it, or give another place")
    check_place(target, "--report")


def write_report(evaluation: Evaluation, background: Background, target: Path) -> None:
    """Write an evaluation as a page, whole or not at all.

    It opens without a network: plots, pictures, style and script are in it, and its content security policy lets
    nothing else in. Names are shown as text, whatever is in them. The same evaluation, background and image files give
    the same bytes. An image that can no longer be read is said so in its place. Raises RunError where the page cannot
    be written.
    """
    page = _render(evaluation, background)
    replace_file(target, page.encode("utf-8", "backslashreplace"))


def _render(evaluation: Evaluation, background: Background) -> str:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=sentences.show_text, share=sentences.show_share, figure=sentences.show_figure, goal=sentences.tell_goal
    )
    script = (resources.files(__package__) / "templates/report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        background=background,
        script=Markup(script),  # our own; names never get into it
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_describe(evaluation, background),
        **_draw(evaluation, background),
    )


def _describe(evaluation: Evaluation, background: Background) -> dict[str, Any]:
    """The words and numbers of the page that are not in the evaluation as they stand."""
    ranks = sorted(range(len(evaluation.classes)), key=lambda i: natural_key(evaluation.classes[i]))
    confusion = np.asarray(evaluation.confusion, dtype=np.int64)
    return {
        "summary": sentences.sum_up(evaluation),
        "confidence": sentences.tell_confidence(evaluation),
        "scaling": sentences.tell_scaling(evaluation.scaling) if evaluation.scaling else "",
        "meanings": sentences.MEANINGS,
        "wilsons": sentences.tell_wilsons(evaluation.figures),
        "alike": any(figure.low is None and figure.value is not None for figure in evaluation.figures),
        "optimistic": any(threshold.chosen_on == evaluation.split for threshold in evaluation.thresholds),
        "places": {evaluation.classes[i]: place for place, i in enumerate(ranks)},
        "shares": share_rows(confusion).tolist(),
        "colours": (HIT, MISS),
        "stages": sentences.list_stages(background.rows),
    }


def _draw(evaluation: Evaluation, background: Background) -> dict[str, Any]:
    """The plots and pictures of the page; empty where there is nothing to show."""
    return {
        "reliability": draw_reliability(evaluation.reliability) if evaluation.reliability else "",
        "matrix": draw_matrix(evaluation) if len(evaluation.classes) > MOST_CELLS else "",
        "progress": draw_progress(background.rows) if background.rows else "",
        "mistakes": _make_cards(evaluation.worst, background.root),
        "doubts": _make_cards(evaluation.unsure, background.root),
    }


def _make_cards(examples: Iterable[Example], root: Path) -> list[_Card]:
    return [_Card(example, make_thumbnail(root / example.path), _describe_example(example)) for example in examples]


def _describe_example(example: Example) -> str:
    """What stands for a picture where it is not seen."""
    path, label, predicted = map(sentences.quote_text, (example.path, example.label, example.predicted))
    truth = "rightly" if example.label == example.predicted else f"truly {label},"
    return f"{path}: {truth} given {predicted} with {sentences.show_share(example.probability)}"
