"""How comparisons of runs look."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from ftcli.console.tables import escape_controls, print_table
from ftcli.results import ComparedRun, CompareResult, format_count

_Row = tuple[str, ...]
"""A name, and a cell for each run."""


def print_comparison(console: Console, result: CompareResult) -> None:
    """Settings and results with a column a run. Where they do not fit, runs are numbered, and settings with long values
    stand below the others, a line for each value."""
    settings = [(setting.key, *map(_format_value, setting.values)) for setting in result.settings]
    results = _list_result_rows(result)
    column_names: _Row = ("", *(run.name for run in result.runs))
    if not (_fits_width(console, column_names, settings) and _fits_width(console, column_names, results)):
        column_names = ("", *map(str, range(1, len(result.runs) + 1)))
        for number, run in zip(column_names[1:], result.runs, strict=True):
            console.print(f"{number}: {escape_controls(run.name)}", soft_wrap=True)
        console.print()
    if settings:
        console.print("what differs:")
        _print_config_differences(console, column_names, settings)
    else:
        console.print("the recipes do not differ")
    console.print()
    _print_results(console, column_names, results)
    if result.differences:
        console.print(f"\nanswers to the same {format_count(result.images, 'image')} of {result.split}:")
    for difference in result.differences:
        console.print(escape_controls(f"- {difference.words}"))
    if result.why is not None:
        console.print(f"\nno test on the same images: {escape_controls(result.why)}", soft_wrap=True)
    if result.picture is not None:
        console.print(f"\nwritten: {result.picture}", soft_wrap=True)


def _list_result_rows(result: CompareResult) -> list[_Row]:
    def row(label: str, show: Callable[[ComparedRun], str | None]) -> _Row:
        return (label, *(show(run) or "-" for run in result.runs))

    rows = [
        row("epochs", lambda run: None if run.epochs is None else str(run.epochs)),
        row("seconds", lambda run: None if run.seconds is None else f"{run.seconds:.1f}"),
        row("val loss", lambda run: _format_loss(run.val_loss)),
        row("val accuracy", lambda run: _format_percent(run.val_accuracy)),
    ]
    if result.split is not None:
        rows += [
            row(f"{result.split} loss", lambda run: _format_loss(run.loss)),
            row(f"{result.split} accuracy", lambda run: _format_percent(run.accuracy)),
            row("  95 % from", lambda run: _format_percent(run.low)),
            row("  95 % to", lambda run: _format_percent(run.high)),
        ]
    return rows


def _print_config_differences(console: Console, column_names: _Row, rows: Sequence[_Row]) -> None:
    """The settings that fit beside one another; below them those that do not, by value, with the runs that have it."""
    table_rows = list(rows)
    while table_rows and not _fits_width(console, column_names, table_rows):
        table_rows.remove(max(table_rows, key=lambda row: _cell_width(row[0]) + max(map(_cell_width, row[1:]))))
    if table_rows:
        print_table(console, column_names, table_rows)
    for key, *values in (row for row in rows if row not in table_rows):
        console.print(key, soft_wrap=True)
        for value in dict.fromkeys(values):
            runs = ", ".join(
                name for name, run_value in zip(column_names[1:], values, strict=True) if run_value == value
            )
            console.print(f"  {escape_controls(runs)}: {escape_controls(value)}", soft_wrap=True)


def _print_results(console: Console, column_names: _Row, rows: Sequence[_Row]) -> None:
    """As many runs beside one another as fit, the others below."""
    first, end = 1, len(column_names)
    while end > first + 1 and not _fits_width(
        console, (column_names[0], *column_names[first:end]), [(r[0], *r[first:end]) for r in rows]
    ):
        end -= 1
    for start in range(1, len(column_names), end - first):
        stop = start + end - first
        if start > 1:
            console.print()
        header = ("", *(f">{name}" for name in column_names[start:stop]))
        print_table(console, header, [(row[0], *row[start:stop]) for row in rows])


def _fits_width(console: Console, column_names: _Row, rows: Sequence[_Row]) -> bool:
    """Whether a table is no wider than the console."""
    gap = 2 if console.width > 80 else 1
    columns = zip(column_names, *rows, strict=True)
    return sum(max(map(_cell_width, column)) + gap for column in columns) <= console.width


def _cell_width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(escape_controls(text))


def _format_value(value: Any) -> str:
    """A value of a recipe. A digest is cut: its beginning tells it from another. So are numbers that were measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return f"{value[:8]}…" if len(value) == 64 and not set(value) - set("0123456789abcdef") else value
    return json.dumps(value, ensure_ascii=False)


def _format_loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _format_percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
