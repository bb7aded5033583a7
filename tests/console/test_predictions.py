"""Tests of predictions as a table, CSV and JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from ftcli.console import OutputFormat, TerminalReporter, write_predictions
from ftcli.results import ClassScore, Prediction, PredictionError, PredictResult, Progress


class TtyStringIO(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


LONG_PATH = "a/" + "long/" * 20 + "path.jpg"


def render_table(
    stream: io.StringIO, *outcomes: Prediction | PredictionError, classes: tuple[str, ...] = ("cat", "dog")
) -> list[str]:
    result = PredictResult(Path("x.pt"), classes, len(classes), iter(outcomes))
    write_predictions(result, OutputFormat.TABLE, stream)
    return stream.getvalue().splitlines()


def create_prediction(path: str, *names: str) -> Prediction:
    return Prediction(path, tuple(ClassScore(name, 1 / (index + 1)) for index, name in enumerate(names)))


def test_table_in_pipe_has_one_line_per_image() -> None:
    rows = render_table(
        io.StringIO(),
        create_prediction("a.jpg", "cat", "dog"),
        PredictionError("b.jpg", "does not exist"),
        create_prediction(LONG_PATH, "dog", "cat"),
    )
    assert rows == [
        f"{'image':60}  class 1  prob.   class 2  prob.",
        f"{'a.jpg':60}  cat      1.0000  dog      0.5000",
        f"{LONG_PATH}  dog      1.0000  cat      0.5000",
    ]


def test_table_on_terminal_shows_full_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = render_table(
        TtyStringIO(), create_prediction("狗.jpg", "cat", "dog"), create_prediction(LONG_PATH, "dog", "cat")
    )
    assert rows == [
        f"{'image':45}  class 1  prob.   class 2  prob.",
        f"{'狗.jpg':44}  cat      1.0000  dog      0.5000",
        LONG_PATH,
        f"{'':45}  dog      1.0000  cat      0.5000",
    ]


def test_table_on_narrow_terminal_puts_path_on_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    classes = ("first class", "second class", "third")
    assert render_table(TtyStringIO(), create_prediction("a.jpg", *classes), classes=classes) == [
        "a.jpg",
        "  first class   1.0000",
        "  second class  0.5000",
        "  third         0.3333",
    ]


def test_table_escapes_control_characters() -> None:
    path = "a\\n\\x1b[31m.jpg"
    assert render_table(io.StringIO(), create_prediction("a\n\x1b[31m.jpg", "cat\r", "dog"), classes=("cat\r", "dog"))[
        1
    ] == (f"{path:60}  cat\\r    1.0000  dog      0.5000")
    stream = io.StringIO()
    with TerminalReporter(stream):
        logging.getLogger("ftcli.evaluation").warning("a\n\x1b[31m.jpg: does not exist")
    assert stream.getvalue() == "warning: a\\n\\x1b[31m.jpg: does not exist\n"


@pytest.mark.parametrize("num_failed", [0, 1, 3])
@pytest.mark.parametrize("num_predicted", [0, 1, 3])
def test_json_is_one_document_with_errors(num_predicted: int, num_failed: int) -> None:
    predictions = [create_prediction(f"{n}.jpg", 'a "b"\n') for n in range(num_predicted)]
    errors = [PredictionError(f"{n}\udcff", "x") for n in range(num_failed)]
    stream = io.StringIO()
    result = PredictResult(Path("/x.pt"), ('a "b"\n',), 1, chain(errors, predictions))
    assert write_predictions(result, OutputFormat.JSON, stream) == (num_predicted, num_failed)
    document = json.loads(stream.getvalue())
    assert document == {
        "checkpoint": "/x.pt",
        "classes": ['a "b"\n'],
        "predictions": [prediction.to_dict() for prediction in predictions],
        "failed": [error.to_dict() for error in errors],
    }


@pytest.mark.parametrize("output_format", OutputFormat)
def test_predictions_are_written_immediately(tmp_path: Path, output_format: OutputFormat) -> None:
    path = tmp_path / "out"

    def yield_predictions() -> Iterator[Prediction]:
        yield create_prediction("a.jpg", "cat", "dog")
        assert "a.jpg" in path.read_text()
        yield create_prediction("b.jpg", "cat", "dog")

    with path.open("w") as stream:
        write_predictions(PredictResult(Path("x.pt"), ("cat", "dog"), 2, yield_predictions()), output_format, stream)
        assert "b.jpg" in path.read_text()


def test_terminal_reporter_hides_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for show_bar in (True, False):
        stream = TtyStringIO()
        with TerminalReporter(stream, show_bar=show_bar) as terminal:
            terminal.update_progress(Progress("predicting", 1, 3))
        assert ("predicting" in stream.getvalue()) == show_bar
