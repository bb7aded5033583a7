"""How comparisons of runs look."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from ftcli.console.tables import make_visible, print_table
from ftcli.results import ComparedRun, Comparison, tell_count

_Row = tuple[str, ...]
"""A name, and a cell for each run."""


def print_comparison(console: Console, result: Comparison) -> None:
    """Settings and results with a column a run. Where they do not fit, runs are numbered, and settings with long values
    stand below the others, a line for each value."""
    settings = [(setting.key, *map(_show, setting.values)) for setting in result.settings]
    results = _list_results(result)
    names: _Row = ("", *(run.name for run in result.runs))
    if not (_fits(console, names, settings) and _fits(console, names, results)):
        names = ("", *map(str, range(1, len(result.runs) + 1)))
        for number, run in zip(names[1:], result.runs, strict=True):
            console.print(f"{number}: {make_visible(run.name)}", soft_wrap=True)
        console.print()
    if settings:
        console.print("what differs:")
        _print_settings(console, names, settings)
    else:
        console.print("the recipes do not differ")
    console.print()
    _print_results(console, names, results)
    if result.differences:
        console.print(f"\nanswers to the same {tell_count(result.images, 'image')} of {result.split}:")
    for difference in result.differences:
        console.print(make_visible(f"- {difference.words}"))
    if result.why is not None:
        console.print(f"\nno test on the same images: {make_visible(result.why)}", soft_wrap=True)
    if result.picture is not None:
        console.print(f"\nwritten: {result.picture}", soft_wrap=True)


def _list_results(result: Comparison) -> list[_Row]:
    def row(label: str, show: Callable[[ComparedRun], str | None]) -> _Row:
        return (label, *(show(run) or "-" for run in result.runs))

    rows = [
        row("epochs", lambda run: None if run.epochs is None else str(run.epochs)),
        row("seconds", lambda run: None if run.seconds is None else f"{run.seconds:.1f}"),
        row("val loss", lambda run: _decimal(run.val_loss)),
        row("val accuracy", lambda run: _percent(run.val_accuracy)),
    ]
    if result.split is not None:
        rows += [
            row(f"{result.split} loss", lambda run: _decimal(run.loss)),
            row(f"{result.split} accuracy", lambda run: _percent(run.accuracy)),
            row("  95 % from", lambda run: _percent(run.low)),
            row("  95 % to", lambda run: _percent(run.high)),
        ]
    return rows


def _print_settings(console: Console, names: _Row, rows: Sequence[_Row]) -> None:
    """The settings that fit beside one another; below them those that do not, by value, with the runs that have it."""
    kept = list(rows)
    while kept and not _fits(console, names, kept):
        kept.remove(max(kept, key=lambda row: _measure(row[0]) + max(map(_measure, row[1:]))))
    if kept:
        print_table(console, names, kept)
    for key, *values in (row for row in rows if row not in kept):
        console.print(key, soft_wrap=True)
        for value in dict.fromkeys(values):
            runs = ", ".join(name for name, own in zip(names[1:], values, strict=True) if own == value)
            console.print(f"  {make_visible(runs)}: {make_visible(value)}", soft_wrap=True)


def _print_results(console: Console, names: _Row, rows: Sequence[_Row]) -> None:
    """As many runs beside one another as fit, the others below."""
    first, end = 1, len(names)
    while end > first + 1 and not _fits(console, (names[0], *names[first:end]), [(r[0], *r[first:end]) for r in rows]):
        end -= 1
    for start in range(1, len(names), end - first):
        stop = start + end - first
        if start > 1:
            console.print()
        header = ("", *(f">{name}" for name in names[start:stop]))
        print_table(console, header, [(row[0], *row[start:stop]) for row in rows])


def _fits(console: Console, names: _Row, rows: Sequence[_Row]) -> bool:
    """Whether a table is no wider than the console."""
    gap = 2 if console.width > 80 else 1
    columns = zip(names, *rows, strict=True)
    return sum(max(map(_measure, column)) + gap for column in columns) <= console.width


def _measure(text: str) -> int:
    """The columns that a text takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(make_visible(text))


def _show(value: Any) -> str:
    """A value of a recipe. A digest is cut: its beginning tells it from another. So are numbers that were measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return f"{value[:8]}…" if len(value) == 64 and not set(value) - set("0123456789abcdef") else value
    return json.dumps(value, ensure_ascii=False)


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
