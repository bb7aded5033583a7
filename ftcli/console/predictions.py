"""How predictions look, written as they come: rows for people, CSV, or one JSON document."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import TextIO

from ftcli.console.tables import make_visible, open_console
from ftcli.results import Failure, Guess, Prediction, Predictions

_PATH = 60  # columns for paths at most
_NAME = 30  # columns for a class at most; a longer name moves what follows


class Form(StrEnum):
    """How predictions are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def write_predictions(predictions: Predictions, form: Form, stream: TextIO) -> tuple[int, int]:
    """Write predictions as they are made, each at once; returns how many there are, and how many images failed.

    Only JSON holds what failed; beside a table and CSV the reporter's warnings tell it.
    """
    match form:
        case Form.TABLE:
            return _write(predictions, _Rows(predictions, stream), stream)
        case Form.CSV:
            return _write(predictions, _Csv(predictions, stream), stream)
        case Form.JSON:
            return _write_json(predictions, stream)


def _write(predictions: Predictions, form: _Rows | _Csv, stream: TextIO) -> tuple[int, int]:
    made = failed = 0
    for outcome in predictions.outcomes:
        match outcome:
            case Prediction():
                form.write(outcome)
                stream.flush()
                made += 1
            case Failure():
                failed += 1
    return made, failed


def _write_json(predictions: Predictions, stream: TextIO) -> tuple[int, int]:
    """One document: an image a line. Failures wait in a file until their turn comes, so memory does not grow."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as waiting:
        counts = {Prediction: 0, Failure: 0}
        plain = {"checkpoint": str(predictions.checkpoint.absolute()), "classes": list(predictions.classes)}
        stream.write(f'{_dump(plain)[:-1]}, "predictions": [')
        for outcome in predictions.outcomes:
            target = stream if isinstance(outcome, Prediction) else waiting
            target.write(f"{',' if counts[type(outcome)] else ''}\n{_dump(outcome.to_dict())}")
            counts[type(outcome)] += 1
            stream.flush()
        stream.write('\n], "failed": [')
        waiting.seek(0)
        for block in iter(lambda: waiting.read(65536), ""):
            stream.write(block)
        stream.write("\n]}\n" if counts[Failure] else "]}\n")
        return counts[Prediction], counts[Failure]


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Csv:
    """path, class_1, probability_1 and so on, quoted where CSV needs it."""

    def __init__(self, predictions: Predictions, stream: TextIO) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        numbers = range(1, predictions.top + 1)
        self._writer.writerow(["path", *(name for n in numbers for name in (f"class_{n}", f"probability_{n}"))])

    def write(self, prediction: Prediction) -> None:
        cells = (cell for guess in prediction.classes for cell in (guess.name, repr(guess.probability)))
        self._writer.writerow([prediction.path, *cells])


class _Rows:
    """A row an image, in columns that are settled before the first. On a terminal, a path that is too long for its
    column stands on a line of its own, above; where the classes would not fit beside one, every path does."""

    def __init__(self, predictions: Predictions, stream: TextIO) -> None:
        self._stream = stream
        self._folds = stream.isatty()
        self._name = min(_NAME, max(map(_measure, (*predictions.classes, f"class {predictions.top}"))))
        self._at_once = predictions.top
        self._path = _PATH
        if self._folds:
            width, cell = open_console(stream).width, self._name + 10
            self._path = min(_PATH, width - 1 - predictions.top * cell)
            if self._path < 16:
                self._path, self._at_once = 0, max(1, (width - 1) // cell)
        if self._path:
            cells = (f"{self._pad(f'class {n}', self._name)}  prob. " for n in range(1, predictions.top + 1))
            self._print(self._pad("image", self._path), cells)

    def write(self, prediction: Prediction) -> None:
        path = make_visible(prediction.path)
        if self._folds and _measure(path) > self._path:
            self._stream.write(f"{path}\n")
            path = ""
        guesses = iter(prediction.classes)
        for part in iter(lambda: tuple(islice(guesses, self._at_once)), ()):
            self._print(self._pad(path, self._path), map(self._show, part))

    def _show(self, guess: Guess) -> str:
        return f"{self._pad(make_visible(guess.name), self._name)}  {guess.probability:.4f}"

    def _print(self, path: str, cells: Iterator[str]) -> None:
        self._stream.write("  ".join((path, *cells)).rstrip() + "\n")

    def _pad(self, text: str, width: int) -> str:
        return text + " " * (width - _measure(text))


def _measure(text: str) -> int:
    """The columns that a text takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(make_visible(text))
