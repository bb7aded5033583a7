"""Consoles, and the plain tables that they show."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

UNLIMITED_WIDTH = 100_000
"""Columns where no terminal limits them: nothing is folded or cut."""


def open_console(stream: TextIO) -> Console:
    """A console that colours and folds on a terminal and does neither elsewhere."""
    width = None if stream.isatty() else UNLIMITED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def is_regular_file(stream: TextIO) -> bool:
    """Whether what is written goes to a file, where nobody watches it come: a pipe may lead to this very terminal."""
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def escape_controls(text: str) -> str:
    """The text on one line, with whatever would steer a terminal written out."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table; a column whose name begins with > is flush right. Cells are text, never markup."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2 if console.width > 80 else 1, 0, 0))
    for column in columns:
        is_right_aligned = column.startswith(">")
        table.add_column(Text(column.lstrip(">")), justify="right" if is_right_aligned else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_controls(cell)) for cell in row))
    console.print(table)


def print_skipped(console: Console, skipped: Sequence[str]) -> None:
    """How many broken images were left out, where there are any."""
    if skipped:
        console.print(f"broken images left out: {len(skipped)}; the first: {skipped[0]}", soft_wrap=True)
