"""How predictions look: columns that stay, paths that are whole, and JSON however many failed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from ftcli.console import Form, Terminal, write_predictions
from ftcli.results import Failure, Guess, Prediction, Predictions, Progress


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


LONG = "a/" + "long/" * 20 + "path.jpg"


def show(stream: io.StringIO, *outcomes: Prediction | Failure, classes: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    given = Predictions(Path("x.pt"), classes, len(classes), iter(outcomes))
    write_predictions(given, Form.TABLE, stream)
    return stream.getvalue().splitlines()


def predict(path: str, *names: str) -> Prediction:
    return Prediction(path, tuple(Guess(name, 1 / (place + 1)) for place, name in enumerate(names)))


def test_a_row_is_a_line_where_nothing_limits_it() -> None:
    rows = show(io.StringIO(), predict("a.jpg", "cat", "dog"), Failure("b.jpg", "is gone"), predict(LONG, "dog", "cat"))
    assert rows == [
        f"{'image':60}  class 1  prob.   class 2  prob.",
        f"{'a.jpg':60}  cat      1.0000  dog      0.5000",
        f"{LONG}  dog      1.0000  cat      0.5000",
    ]


def test_a_terminal_shows_long_paths_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = show(Screen(), predict("狗.jpg", "cat", "dog"), predict(LONG, "dog", "cat"))
    assert rows == [
        f"{'image':45}  class 1  prob.   class 2  prob.",
        f"{'狗.jpg':44}  cat      1.0000  dog      0.5000",
        LONG,
        f"{'':45}  dog      1.0000  cat      0.5000",
    ]


def test_a_narrow_terminal_gets_a_line_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    classes = ("first class", "second class", "third")
    assert show(Screen(), predict("a.jpg", *classes), classes=classes) == [
        "a.jpg",
        "  first class   1.0000",
        "  second class  0.5000",
        "  third         0.3333",
    ]


def test_what_would_steer_a_terminal_is_written_out() -> None:
    path = "a\\n\\x1b[31m.jpg"
    assert show(io.StringIO(), predict("a\n\x1b[31m.jpg", "cat\r", "dog"), classes=("cat\r", "dog"))[1] == (
        f"{path:60}  cat\\r    1.0000  dog      0.5000"
    )
    stream = io.StringIO()
    Terminal(stream).warn("a\n\x1b[31m.jpg: is gone")
    assert stream.getvalue() == "warning: a\\n\\x1b[31m.jpg: is gone\n"


@pytest.mark.parametrize("failed", [0, 1, 3])
@pytest.mark.parametrize("made", [0, 1, 3])
def test_json_is_one_document(made: int, failed: int) -> None:
    predictions = [predict(f"{n}.jpg", 'a "b"\n') for n in range(made)]
    failures = [Failure(f"{n}\udcff", "x") for n in range(failed)]
    stream = io.StringIO()
    given = Predictions(Path("/x.pt"), ('a "b"\n',), 1, chain(failures, predictions))
    assert write_predictions(given, Form.JSON, stream) == (made, failed)
    told = json.loads(stream.getvalue())
    assert told == {
        "checkpoint": "/x.pt",
        "classes": ['a "b"\n'],
        "predictions": [one.to_dict() for one in predictions],
        "failed": [one.to_dict() for one in failures],
    }


@pytest.mark.parametrize("form", Form)
def test_a_result_is_written_when_it_is_there(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "out"

    def come() -> Iterator[Prediction]:
        yield predict("a.jpg", "cat", "dog")
        assert "a.jpg" in path.read_text()
        yield predict("b.jpg", "cat", "dog")

    with path.open("w") as stream:
        write_predictions(Predictions(Path("x.pt"), ("cat", "dog"), 2, come()), form, stream)
        assert "b.jpg" in path.read_text()


def test_there_is_no_bar_where_results_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for bar in (True, False):
        stream = Screen()
        with Terminal(stream, bar=bar) as terminal:
            terminal.advance(Progress("predicting", 1, 3))
        assert ("predicting" in stream.getvalue()) == bar
