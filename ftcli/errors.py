"""Exceptions with messages for users and exit codes, and helpers for messages."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

_MAX_LISTED = 10


@dataclass(frozen=True)
class ErrorTable:
    """A table below the messages of an error, with a note below it. Titles of numeric columns begin with >."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class FtcliError(Exception):
    """One or more errors for the user, each a message with location, value, problem and remedy.

    `cli.py` prints the messages, one per line, and the table, and exits with `exit_code`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *messages: str, table: ErrorTable | None = None) -> None:
        self.messages = messages
        self.table = table
        super().__init__("\n".join(messages))


class RunError(FtcliError):
    """An error while running, such as a non-finite loss, a full disk or a changed frozen parameter."""


class RecipeError(FtcliError):
    """An invalid recipe, option or output path."""

    exit_code = 2


class DataError(FtcliError):
    """Missing, corrupt or inconsistent images, folders or manifests."""

    exit_code = 3


class CheckpointError(FtcliError):
    """A missing, corrupt, unsafe, unreachable or mismatched checkpoint or weights file."""

    exit_code = 4


class RunInterruptedError(FtcliError):
    """A run stopped by SIGINT, after saving everything that resuming needs."""

    exit_code = 130


class RunTerminatedError(RunInterruptedError):
    """A run stopped by SIGTERM, after saving everything that resuming needs."""

    exit_code = 143


class StopRequestedError(Exception):
    """A task that a signal ended early; the run saves its state and raises RunInterruptedError instead."""


def suggest(value: str, known: Iterable[str], *, max_shown: int = 12) -> str:
    """Return a hint for an unknown name: "did you mean 'a'?" if there are similar names, else "known: a, b".

    At most `max_shown` known names are listed, followed by the number of the others.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.6)
    if not near:
        near = [name for name in names if value and value.lower() in name.lower()][:3]
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    return f"known: {format_list(names, max_shown)}" if names else "there are no known names"


def format_list(items: Iterable[str], max_items: int) -> str:
    """Return the first items joined by commas, then the number of the others: `a, b and 3 more`."""
    all_items = list(items)
    suffix = f" and {len(all_items) - max_items:,} more" if len(all_items) > max_items else ""
    return ", ".join(all_items[:max_items]) + suffix


def quote_names(names: Iterable[str], max_names: int = 12) -> str:
    """Return the first names, quoted, joined by commas, then the number of the others."""
    return format_list(map(repr, names), max_names)


class ErrorList:
    """Errors in the data that are raised together. Each message begins with `location`.

    Of the errors of one kind the first ten are listed; the others are counted in a last message: `3 more <kind>`.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._messages: list[str] = []
        self._num_by_kind: Counter[str] = Counter()
        self._num_errors = 0

    def __len__(self) -> int:
        return self._num_errors

    def add(self, message: str, kind: str = "") -> None:
        """Add an error. `kind` follows a count, as in `images are in two roots`; without one, the error is listed."""
        self._num_errors += 1
        if kind:
            self._num_by_kind[kind] += 1
        if self._num_by_kind[kind] <= _MAX_LISTED:
            self._messages.append(message)

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages, those with counts at the end."""
        counted = [f"{n - _MAX_LISTED} more {kind}" for kind, n in self._num_by_kind.items() if n > _MAX_LISTED]
        return tuple(f"{self.location}: {message}" for message in (*self._messages, *counted))

    def raise_if_any(self) -> None:
        """Raise one DataError with all messages, if there are any."""
        if self._num_errors:
            raise DataError(*self.messages)


def first_line(error: object) -> str:
    """Return the first line of an error's text without a final period, or the name of its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")


def install_hint(extra: str) -> str:
    """Return the command that installs an optional extra; ftcli is installed from its repository."""
    return f"run pip install '.[{extra}]' in the ftcli repository"
