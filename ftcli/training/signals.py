"""SIGINT and SIGTERM ask for a stop; the loop stops where everything can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from ftcli.errors import RunInterruptedError, RunTerminatedError
from ftcli.results import Reporter


class GracefulStop:
    """A context in which the first SIGINT or SIGTERM is noted instead of raised; a second one raises at once.

    Outside the main thread, where Python allows no handlers, signals stay as they are.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._received: int | None = None
        self._previous_handlers: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[signum] = signal.signal(signum, self._handle_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._received is not None

    def error(self, text: str) -> RunInterruptedError:
        """The error that the stop ends in, with its exit code."""
        return RunTerminatedError(text) if self._received == signal.SIGTERM else RunInterruptedError(text)

    def _handle_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signum
        self._reporter.info("Stopping after this step; once more stops at once, without saving")
