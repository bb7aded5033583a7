"""A graceful stop on SIGINT and SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

from ftcli.errors import RunInterruptedError, RunTerminatedError

logger = logging.getLogger(__name__)


class GracefulStop:
    """A context in which the first SIGINT or SIGTERM sets a flag; a second one raises KeyboardInterrupt at once.

    Has no effect outside the main thread, where Python does not allow signal handlers.
    """

    def __init__(self) -> None:
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
            signal.signal(signum, handler)  # type: ignore[arg-type]  # the return value of signal.signal

    def is_set(self) -> bool:
        """Return whether a stop was requested."""
        return self._received is not None

    def create_error(self, message: str) -> RunInterruptedError:
        """Return the error, with the exit code of the received signal, that ends the run."""
        return RunTerminatedError(message) if self._received == signal.SIGTERM else RunInterruptedError(message)

    def _handle_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signum
        # This cannot deadlock: the locks of logging and rich are re-entrant, and only the main thread logs.
        logger.info("Stopping after this step; a second signal (Ctrl-C) stops at once, without saving")
