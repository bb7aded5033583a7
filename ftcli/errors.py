"""The tree of errors. Each carries whole sentences for people and owns its exit code."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

_MAX_LISTED = 10


@dataclass(frozen=True)
class ErrorTable:
    """What shows a fault better than a sentence can; `note` is a line below. A column that begins with > holds
    numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class FtcliError(Exception):
    """One or more faults, each a sentence: what, where, the value, the remedy.

    Only `cli.py` catches this type; it prints the faults a line each, then the table, and exits with `exit_code`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *messages: str, table: ErrorTable | None = None) -> None:
        self.messages = messages
        self.table = table
        super().__init__("\n".join(messages))


class RunError(FtcliError):
    """A fault while running: a loss that is not finite, a full disk, a frozen parameter that moved."""


class RecipeError(FtcliError):
    """The recipe or the command line asks for what cannot be done, or for a folder that is taken."""

    exit_code = 2


class DataError(FtcliError):
    """The images or their folders are missing, broken or do not agree."""

    exit_code = 3


class CheckpointError(FtcliError):
    """A checkpoint or weights file is missing, broken, hostile, unreachable or does not fit."""

    exit_code = 4


class RunInterruptedError(FtcliError):
    """The run was stopped by SIGINT; everything needed to go on was saved first."""

    exit_code = 130


class RunTerminatedError(RunInterruptedError):
    """The run was stopped by SIGTERM; everything needed to go on was saved first."""

    exit_code = 143


def suggest(value: str, known: Iterable[str], *, max_shown: int = 12) -> str:
    """Say which of the known names the value may have meant.

    Returns "did you mean 'a'?" for near names, "known: a, b" for a list of at most `show` names,
    and otherwise the first of them with the count of the rest.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.6)
    if not near:
        near = [name for name in names if value and value.lower() in name.lower()][:3]
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    return f"known: {format_list(names, max_shown)}" if names else "nothing is known here"


def format_list(items: Iterable[str], max_items: int) -> str:
    """Return the first items joined by commas, then the number of the others: `a, b and 3 more`."""
    all_items = list(items)
    suffix = f" and {len(all_items) - max_items:,} more" if len(all_items) > max_items else ""
    return ", ".join(all_items[:max_items]) + suffix


def quote_names(names: Iterable[str], max_names: int = 12) -> str:
    """Return the first names, quoted, joined by commas, then the number of the others."""
    return format_list(map(repr, names), max_names)


class ErrorList:
    """Errors in the data, collected to be raised together. Each message starts with `location`.

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
