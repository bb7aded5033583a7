"""Messages, epochs, progress bars and errors on standard error."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from ftcli.console.tables import escape_controls, open_console, print_table
from ftcli.errors import ErrorTable
from ftcli.results import EpochMetrics, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class _MessageHandler(logging.Handler):
    """A logging handler that prints messages as lines, and warnings with a prefix."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = escape_controls(record.getMessage())
        line = Text.assemble(("warning: ", "yellow"), text) if record.levelno >= logging.WARNING else text
        # A run continues if a message cannot be printed, because the disk is full, the stream is closed, or a signal
        # handler logs during a write. Errors raised by signal handlers are of other types and propagate.
        with suppress(OSError, ValueError, RuntimeError):
            self._console.print(line)


@contextmanager
def _print_messages(console: Console) -> Iterator[None]:
    """Print the records of the logger `ftcli` at INFO and above; do not propagate them."""
    logger, handler = logging.getLogger("ftcli"), _MessageHandler(console)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler of the root logger would print the message a second time
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class TerminalReporter:
    """A Reporter that prints epochs as lines and progress as a bar. In its context, logged messages are printed too.

    The bar is shown on a terminal only, and only with `show_bar`: results printed on the same terminal would break it.
    """

    def __init__(self, stream: TextIO | None = None, show_bar: bool = True) -> None:
        self._console = open_console(stream or sys.stderr)
        self._shows_bar = show_bar and self._console.is_terminal
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._task_name = ""
        self._last_refresh = 0.0
        self._exit_stack = ExitStack()

    def update_progress(self, progress: Progress) -> None:
        if not self._shows_bar:
            return
        if self._bar is None or self._task is None or self._task_name != progress.task:
            self._stop_bar()
            self._bar = self._create_bar()
            self._bar.start()
            self._task_name = progress.task
            self._task = self._bar.add_task(progress.task, count="", rate="", details="", total=progress.total)
        count, rate = _format_count_and_rate(progress)
        self._bar.update(self._task, completed=progress.done, count=count, rate=rate, details=progress.details)
        now = time.monotonic()
        if now - self._last_refresh > 0.1 or progress.done == progress.total:
            self._bar.refresh()
            self._last_refresh = now
        if progress.done >= progress.total:
            self._stop_bar()

    def log_epoch(self, metrics: EpochMetrics, num_epochs: int, is_best: bool) -> None:
        parts = [f"{metrics.stage} {metrics.epoch}/{num_epochs}"]
        if metrics.train_loss is not None and metrics.train_accuracy is not None:
            parts.append(f"train {metrics.train_loss:.4f} ({metrics.train_accuracy:.1%})")
        parts.append(f"val {metrics.val_loss:.4f} ({metrics.val_accuracy:.1%})")
        if metrics.lr is not None:
            parts.append(f"lr {metrics.lr:.2g}")
        parts.append(f"{metrics.seconds:.1f} s")
        if metrics.images_per_second is not None:
            parts.append(f"{metrics.images_per_second:.0f} images/s")
        with suppress(OSError):  # a run continues if stderr is a closed pipe or on a full disk
            self._console.print("  ".join(parts) + ("  best" if is_best else ""))

    def __enter__(self) -> TerminalReporter:
        """Print logged messages until the context exits."""
        self._exit_stack.enter_context(_print_messages(self._console))
        self._exit_stack.callback(self._stop_bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove an unfinished bar, so that later output starts on a new line, and restore logging."""
        self._exit_stack.close()

    def _create_bar(self) -> Bar:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # slow to import
        from rich.progress import Progress as Bar
        from rich.table import Column

        # No refresh thread: loader processes are forked while a bar is shown, and its locks would stay locked in them.
        # No wrapping: of a wrapped line, only the last part could be redrawn.
        one_line = Column(no_wrap=True, overflow="ellipsis")
        columns = [
            TextColumn("{task.description}", markup=False, table_column=one_line),
            BarColumn(bar_width=30 if self._console.width >= 100 else 8),
            TextColumn(
                "{task.fields[count]}  {task.fields[details]}  {task.fields[rate]}",
                markup=False,
                table_column=one_line,
            ),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        ]
        return Bar(*columns, console=self._console, transient=True, auto_refresh=False)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _format_count_and_rate(progress: Progress) -> tuple[str, str]:
    """Return the count and the rate of a task, with units."""
    if progress.unit == "bytes":
        rate = f"{progress.rate / 1e6:.1f} MB/s" if progress.rate else ""
        return f"{progress.done / 1e6:.1f}/{progress.total / 1e6:.1f} MB", rate
    return f"{progress.done}/{progress.total}", f"{progress.rate:.0f} images/s" if progress.rate else ""


def print_errors(errors: Iterable[str], table: ErrorTable | None = None) -> None:
    """Print one line per error, then the table. If stderr cannot be written, only the exit code reports the error."""
    console = open_console(sys.stderr)
    try:
        _print_errors(console, errors, table)
    except OSError:
        # Python flushes the buffer at exit; a failed flush would change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _print_errors(console: Console, errors: Iterable[str], table: ErrorTable | None) -> None:
    for error in errors:
        console.print(Text.assemble(("error: ", "bold red"), escape_controls(error)))
    if table is not None:
        print_table(console, table.columns, table.rows)
        if table.note:
            console.print(Text(table.note))
