"""Tests of messages, progress bars, errors and tables in a pipe and on a terminal."""

from __future__ import annotations

import io
import logging
import signal
from pathlib import Path

import pytest

from ftcli.console import TerminalReporter, print_errors, print_result
from ftcli.errors import RunTerminatedError
from ftcli.results import DownloadResult, EpochMetrics, Progress, TestResult, TrainResult
from ftcli.training.signals import GracefulStop


class TtyStringIO(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class FailingStream(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str, /) -> int:
        raise self.error


logger = logging.getLogger("ftcli.training.trainer")
library_logger = logging.getLogger("ftcli")

METRICS = EpochMetrics("head", 1, 0.51234, 0.75, 0.4, 0.8, 0.003, 12.34, 120.4)


def test_log_epoch_prints_one_line() -> None:
    stream = io.StringIO()
    with TerminalReporter(stream) as terminal:
        terminal.log_epoch(METRICS, 2, True)
        terminal.log_epoch(EpochMetrics("all", 0, None, None, 0.4, 0.8, None, 2.0, None), 5, False)
    assert stream.getvalue().splitlines() == [
        "head 1/2  train 0.5123 (75.0%)  val 0.4000 (80.0%)  lr 0.003  12.3 s  120 images/s  best",
        "all 0/5  val 0.4000 (80.0%)  2.0 s",
    ]


def test_update_progress_in_pipe_shows_no_bar() -> None:
    stream = io.StringIO()
    with TerminalReporter(stream) as terminal:
        terminal.update_progress(Progress("head 1/2", 1, 3, 10.0, "loss 0.5"))
        logger.info("a [bold]word[/bold] :smile: 100% " + "long " * 60)
        logger.warning("watch out")
    assert stream.getvalue() == "a [bold]word[/bold] :smile: 100% " + "long " * 60 + "\nwarning: watch out\n"


def test_update_progress_on_terminal_shows_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = TtyStringIO()
    with TerminalReporter(stream) as terminal:
        for done in (1, 2, 3):
            terminal.update_progress(Progress("head 1/2", done, 3, 10.0, "loss 0.5"))
        terminal.log_epoch(METRICS, 2, False)
    shown = stream.getvalue()
    assert "head 1/2" in shown
    assert "3/3  loss 0.5  10 images/s" in shown


def test_message_handler_prints_above_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = TtyStringIO()
    with TerminalReporter(stream) as terminal:
        terminal.update_progress(Progress("head 1/2", 1, 3, 10.0, "loss 0.5"))
        logger.info("features are cached")
        assert stream.getvalue().count("features are cached\n") == 1
        before, after = stream.getvalue().split("features are cached\n")
        assert "1/3  loss 0.5" in before
        assert before.endswith("\r\x1b[2K")  # the bar is erased
        assert "1/3  loss 0.5" in after


def test_terminal_reporter_restores_logging() -> None:
    before = (library_logger.handlers[:], library_logger.level, library_logger.propagate)
    stream = io.StringIO()
    with TerminalReporter(stream):
        assert logger.isEnabledFor(logging.INFO)
    with pytest.raises(ZeroDivisionError), TerminalReporter(stream):
        raise ZeroDivisionError
    assert (library_logger.handlers, library_logger.level, library_logger.propagate) == before
    logger.warning("after the command")
    assert stream.getvalue() == ""


def test_message_handler_prints_once_with_root_handler() -> None:
    stream, root_stream = io.StringIO(), io.StringIO()
    root_handler = logging.StreamHandler(root_stream)
    logging.getLogger().addHandler(root_handler)
    try:
        with TerminalReporter(stream):
            logger.warning("during the command")
        logger.warning("after the command")
    finally:
        logging.getLogger().removeHandler(root_handler)
    assert stream.getvalue() == "warning: during the command\n"
    assert root_stream.getvalue() == "after the command\n"


@pytest.mark.parametrize(
    "error", [OSError("full"), ValueError("closed"), RuntimeError("reentrant call")], ids=lambda error: str(error)
)
def test_message_handler_drops_message_to_failing_stream(error: Exception) -> None:
    with TerminalReporter(FailingStream(error)):
        logger.warning("x")


def test_log_epoch_to_full_stream_is_dropped() -> None:
    with TerminalReporter(FailingStream(OSError("full"))) as terminal:
        terminal.log_epoch(METRICS, 2, True)


def test_message_handler_does_not_deadlock_in_signal_handler() -> None:
    class InterruptingStream(io.StringIO):
        """A stream whose first write is interrupted by SIGINT, with the locks of the handler and the console held."""

        def write(self, text: str, /) -> int:
            if not stop.is_set():
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    stream = InterruptingStream()
    with TerminalReporter(stream), GracefulStop() as stop:
        logger.info("x")
    assert "Stopping after this step; " in stream.getvalue()


def test_message_handler_passes_error_of_signal_handler() -> None:
    with pytest.raises(RunTerminatedError), TerminalReporter(FailingStream(RunTerminatedError("terminated"))):
        logger.warning("x")


def test_update_progress_shows_bytes_as_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = TtyStringIO()
    with TerminalReporter(stream) as terminal:
        for done in (1_000_000, 12_340_000):
            terminal.update_progress(Progress("download a.zip", done, 12_340_000, 2_500_000.0, unit="bytes"))
    assert "12.3/12.3 MB    2.5 MB/s" in stream.getvalue()


def test_print_result_shows_tables_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(DownloadResult("x", Path("data/x"), 3, {"train": {"[red]a[/red]": 1, ":smile:": 2}}), as_json=False)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "x: 3 images in data/x",
        "split  class         images",
        "train  [red]a[/red]       1",
        "train  :smile:            2",
    ]
    result = TrainResult(Path("run"), Path("run/b.pt"), (), TestResult(0.5, 0.75, 4), ("a.jpg: is corrupt",), "ftcli x")
    print_result(result, as_json=False)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()][1:] == [
        "test: accuracy 75.0%, loss 0.5000 on 4 images",
        "1 corrupt image skipped; the first: a.jpg: is corrupt",
        "best checkpoint: run/b.pt",
        "next: ftcli x",
    ]


def test_print_errors_prints_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_errors(["x" * 200, "[b]"])
    assert capsys.readouterr().err == "error: " + "x" * 200 + "\nerror: [b]\n"


def test_terminal_reporter_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter():
        logger.info("read a\x1b[2Jb.png")
        logger.warning("skipped: a\x1b[2Jb.png")
    print_errors(["a\x1b[2Jb\n.png: is corrupt"])
    assert capsys.readouterr().err.splitlines() == [
        r"read a\x1b[2Jb.png",
        r"warning: skipped: a\x1b[2Jb.png",
        r"error: a\x1b[2Jb\n.png: is corrupt",
    ]
