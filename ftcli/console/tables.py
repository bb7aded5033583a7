"""Plain tables and the text in their cells."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from ftcli.results import format_count

UNLIMITED_WIDTH = 100_000
"""Columns of a stream that is not a terminal: nothing is wrapped or truncated."""


def open_console(stream: TextIO) -> Console:
    """Return a console with colors and wrapping on a terminal only."""
    width = None if stream.isatty() else UNLIMITED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def escape_controls(text: str) -> str:
    """Return the text with control characters and line breaks escaped."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )


def cell_width(text: str) -> int:
    """Return the width of the escaped text in terminal columns."""
    from rich.cells import cell_len

    return cell_len(escape_controls(text))


def format_shape(shape: Iterable[int]) -> str:
    """Return a shape such as 512x7x7."""
    return "x".join(map(str, shape))


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without borders. A column whose name begins with > is right-aligned; cells are not markup."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2 if console.width > 80 else 1, 0, 0))
    for column in columns:
        is_right_aligned = column.startswith(">")
        table.add_column(Text(column.lstrip(">")), justify="right" if is_right_aligned else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_controls(cell)) for cell in row))
    console.print(table)


def print_skipped(console: Console, skipped: Sequence[str]) -> None:
    """Print the number of skipped images, if any."""
    if skipped:
        count = format_count(len(skipped), "corrupt image")
        console.print(f"{count} skipped; the first: {skipped[0]}", soft_wrap=True)
