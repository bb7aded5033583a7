"""Predictions as a table, CSV or JSON, written one by one."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import TextIO

from ftcli.console.tables import cell_width, escape_controls, open_console
from ftcli.results import ClassScore, Prediction, PredictionError, PredictResult

_MAX_PATH_WIDTH = 60
_MAX_NAME_WIDTH = 30
"""Terminal columns of a class name; a longer one shifts the rest of its row."""


class OutputFormat(StrEnum):
    """The format of predictions."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def write_predictions(predictions: PredictResult, output_format: OutputFormat, stream: TextIO) -> tuple[int, int]:
    """Write each prediction as soon as it is computed; return the numbers of predictions and of failed images.

    Only JSON lists the failed images; the predictor also warns of each.
    """
    match output_format:
        case OutputFormat.TABLE:
            return _write_lines(predictions, _TableWriter(predictions, stream), stream)
        case OutputFormat.CSV:
            return _write_lines(predictions, _CsvWriter(predictions, stream), stream)
        case OutputFormat.JSON:
            return _write_json(predictions, stream)


def _write_lines(predictions: PredictResult, writer: _TableWriter | _CsvWriter, stream: TextIO) -> tuple[int, int]:
    num_predicted = num_failed = 0
    for outcome in predictions.outcomes:
        match outcome:
            case Prediction():
                writer.write(outcome)
                stream.flush()
                num_predicted += 1
            case PredictionError():
                num_failed += 1
    return num_predicted, num_failed


def _write_json(predictions: PredictResult, stream: TextIO) -> tuple[int, int]:
    """Write one JSON document, one line per image. Failures wait in a temporary file, so memory does not grow."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as failed_file:
        counts = {Prediction: 0, PredictionError: 0}
        header = {"checkpoint": str(predictions.checkpoint.absolute()), "classes": list(predictions.classes)}
        stream.write(f'{_to_json(header)[:-1]}, "predictions": [')
        for outcome in predictions.outcomes:
            output = stream if isinstance(outcome, Prediction) else failed_file
            output.write(f"{',' if counts[type(outcome)] else ''}\n{_to_json(outcome.to_dict())}")
            counts[type(outcome)] += 1
            stream.flush()
        stream.write('\n], "failed": [')
        failed_file.seek(0)
        for block in iter(lambda: failed_file.read(65536), ""):
            stream.write(block)
        stream.write("\n]}\n" if counts[PredictionError] else "]}\n")
        return counts[Prediction], counts[PredictionError]


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class _CsvWriter:
    """Writes CSV with the columns path, class_1, probability_1 and so on."""

    def __init__(self, predictions: PredictResult, stream: TextIO) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        numbers = range(1, predictions.top + 1)
        self._writer.writerow(["path", *(name for n in numbers for name in (f"class_{n}", f"probability_{n}"))])

    def write(self, prediction: Prediction) -> None:
        cells = (cell for score in prediction.classes for cell in (score.name, repr(score.probability)))
        self._writer.writerow([prediction.path, *cells])


class _TableWriter:
    """Writes one row per image with columns of fixed width.

    On a terminal, a path that is too long for its column has its own line above the row. If the classes do not fit next
    to a path column, every path has its own line.
    """

    def __init__(self, predictions: PredictResult, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._name_width = min(
            _MAX_NAME_WIDTH, max(map(cell_width, (*predictions.classes, f"class {predictions.top}")))
        )
        self._classes_per_line = predictions.top
        self._path_width = _MAX_PATH_WIDTH
        if self._is_terminal:
            width, cell = open_console(stream).width, self._name_width + 10
            self._path_width = min(_MAX_PATH_WIDTH, width - 1 - predictions.top * cell)
            if self._path_width < 16:
                self._path_width, self._classes_per_line = 0, max(1, (width - 1) // cell)
        if self._path_width:
            cells = (f"{self._pad(f'class {n}', self._name_width)}  prob. " for n in range(1, predictions.top + 1))
            self._write_line(self._pad("image", self._path_width), cells)

    def write(self, prediction: Prediction) -> None:
        path = escape_controls(prediction.path)
        if self._is_terminal and cell_width(path) > self._path_width:
            self._stream.write(f"{path}\n")
            path = ""
        scores = iter(prediction.classes)
        for line_scores in iter(lambda: tuple(islice(scores, self._classes_per_line)), ()):
            self._write_line(self._pad(path, self._path_width), map(self._format_score, line_scores))

    def _format_score(self, score: ClassScore) -> str:
        return f"{self._pad(escape_controls(score.name), self._name_width)}  {score.probability:.4f}"

    def _write_line(self, path: str, cells: Iterator[str]) -> None:
        self._stream.write("  ".join((path, *cells)).rstrip() + "\n")

    def _pad(self, text: str, width: int) -> str:
        return text + " " * (width - cell_width(text))
