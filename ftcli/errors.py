"""The tree of errors. Each carries whole sentences for people and owns its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


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
    if not names:
        return "nothing is known here"
    listed = ", ".join(names[:max_shown])
    return f"known: {listed}" if len(names) <= max_shown else f"known: {listed} and {len(names) - max_shown} more"
