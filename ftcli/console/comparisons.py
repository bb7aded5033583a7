"""Tables of `ftcli compare`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from ftcli.console.tables import cell_width, escape_controls, print_table
from ftcli.results import ComparedRun, CompareResult, format_count, format_percent

_TableRow = tuple[str, ...]
"""A label and one cell per run."""

_SHA256_LENGTH = 64


def print_comparison(console: Console, result: CompareResult) -> None:
    """Print settings and metrics with one column per run. If the tables are too wide, runs are numbered, and settings
    with long values are printed below the table, one line per value."""
    settings = [(setting.key, *map(_format_value, setting.values)) for setting in result.settings]
    metrics = _list_metric_rows(result)
    column_names: _TableRow = ("", *(run.name for run in result.runs))
    if not (_fits_width(console, column_names, settings) and _fits_width(console, column_names, metrics)):
        column_names = ("", *map(str, range(1, len(result.runs) + 1)))
        for number, run in zip(column_names[1:], result.runs, strict=True):
            console.print(f"{number}: {escape_controls(run.name)}", soft_wrap=True)
        console.print()
    if settings:
        console.print("settings that differ:")
        _print_settings(console, column_names, settings)
    else:
        console.print("all settings are equal")
    console.print()
    _print_metrics(console, column_names, metrics)
    if result.differences:
        console.print(f"\ntests on the same {format_count(result.images, 'image')} of {result.split}:")
    for difference in result.differences:
        console.print(escape_controls(f"- {difference.words}"))
    if result.why is not None:
        console.print(f"\nno significance test: {escape_controls(result.why)}", soft_wrap=True)
    if result.picture is not None:
        console.print(f"\nplot: {result.picture}", soft_wrap=True)


def _list_metric_rows(result: CompareResult) -> list[_TableRow]:
    def create_row(label: str, format_cell: Callable[[ComparedRun], str | None]) -> _TableRow:
        return (label, *(format_cell(run) or "-" for run in result.runs))

    rows = [
        create_row("epochs", lambda run: None if run.epochs is None else str(run.epochs)),
        create_row("seconds", lambda run: None if run.seconds is None else f"{run.seconds:.1f}"),
        create_row("val loss", lambda run: _format_loss(run.val_loss)),
        create_row("val accuracy", lambda run: _format_percent(run.val_accuracy)),
    ]
    if result.split is not None:
        rows += [
            create_row(f"{result.split} loss", lambda run: _format_loss(run.loss)),
            create_row(f"{result.split} accuracy", lambda run: _format_percent(run.accuracy)),
            create_row("  95% from", lambda run: _format_percent(run.low)),
            create_row("  95% to", lambda run: _format_percent(run.high)),
        ]
    return rows


def _print_settings(console: Console, column_names: _TableRow, rows: Sequence[_TableRow]) -> None:
    """Print a table of the settings that fit, then the others with the runs that have each value."""
    table_rows = list(rows)
    while table_rows and not _fits_width(console, column_names, table_rows):
        table_rows.remove(max(table_rows, key=lambda row: cell_width(row[0]) + max(map(cell_width, row[1:]))))
    if table_rows:
        print_table(console, column_names, table_rows)
    for key, *values in (row for row in rows if row not in table_rows):
        console.print(key, soft_wrap=True)
        for value in dict.fromkeys(values):
            runs = ", ".join(
                name for name, run_value in zip(column_names[1:], values, strict=True) if run_value == value
            )
            console.print(f"  {escape_controls(runs)}: {escape_controls(value)}", soft_wrap=True)


def _print_metrics(console: Console, column_names: _TableRow, rows: Sequence[_TableRow]) -> None:
    """Print tables of as many runs as fit, one below another."""
    first, end = 1, len(column_names)
    while end > first + 1 and not _fits_width(
        console, (column_names[0], *column_names[first:end]), [(row[0], *row[first:end]) for row in rows]
    ):
        end -= 1
    for start in range(1, len(column_names), end - first):
        stop = start + end - first
        if start > 1:
            console.print()
        header = ("", *(f">{name}" for name in column_names[start:stop]))
        print_table(console, header, [(row[0], *row[start:stop]) for row in rows])


def _fits_width(console: Console, column_names: _TableRow, rows: Sequence[_TableRow]) -> bool:
    gap = 2 if console.width > 80 else 1
    columns = zip(column_names, *rows, strict=True)
    return sum(max(map(cell_width, column)) + gap for column in columns) <= console.width


def _format_value(value: Any) -> str:
    """Return a recipe value as text. Numbers are rounded and SHA-256 digests truncated."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        is_digest = len(value) == _SHA256_LENGTH and not set(value) - set("0123456789abcdef")
        return f"{value[:8]}…" if is_digest else value
    return json.dumps(value, ensure_ascii=False)


def _format_loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _format_percent(fraction: float | None) -> str | None:
    return None if fraction is None else format_percent(fraction)
