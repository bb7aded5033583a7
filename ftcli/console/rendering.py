"""The result of a command as one JSON document or as tables."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

from rich.console import Console

from ftcli.console.comparisons import print_comparison
from ftcli.console.evaluations import print_evaluation
from ftcli.console.extractions import print_extraction
from ftcli.console.inspections import print_inspection, print_models
from ftcli.console.tables import escape_controls, open_console, print_skipped, print_table
from ftcli.results import (
    CacheEntry,
    CacheResult,
    CompareResult,
    DownloadResult,
    EvaluateResult,
    ExtractResult,
    InitResult,
    InspectResult,
    ModelListResult,
    Result,
    SchemaResult,
    StageTimes,
    TrainResult,
    format_count,
    format_size,
)

_ACTIVITY_LABELS = {"frozen": "feature extraction", "data": "data loading", "solving": "head fit"}
"""Column names of StageTimes fields with another name."""

_MIN_SECONDS_SHOWN = 0.05


def print_result(result: Result, *, as_json: bool) -> None:
    """Print the result of a command on standard output."""
    if as_json or isinstance(result, SchemaResult):
        sys.stdout.write(json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return
    console = open_console(sys.stdout)
    match result:
        case InspectResult():
            print_inspection(console, result)
        case ModelListResult():
            print_models(console, result)
        case TrainResult():
            _print_training(console, result)
        case EvaluateResult():
            print_evaluation(console, result)
        case ExtractResult():
            print_extraction(console, result)
        case CompareResult():
            print_comparison(console, result)
        case CacheResult():
            _print_cache(console, result)
        case DownloadResult():
            _print_download(console, result)
        case InitResult() if result.out is None:
            sys.stdout.write(result.recipe)
        case InitResult():
            console.print(f"recipe: {result.out}", soft_wrap=True)
            console.print(f"next: {result.next_command}", soft_wrap=True)
        case _:
            raise TypeError(f"print_result does not support {type(result).__name__}")


def _print_training(console: Console, result: TrainResult) -> None:
    rows = [
        (
            stage.name,
            str(stage.epochs),
            f"{stage.trainable_parameters:,}",
            f"{stage.start_val_loss:.4f}",
            f"{stage.val_loss:.4f}",
            f"{stage.val_accuracy:.1%}",
            f"{stage.seconds:.1f}",
        )
        for stage in result.stages
    ]
    columns = ("stage", ">epochs", ">trainable", ">start val loss", ">best val loss", ">val accuracy", ">seconds")
    print_table(console, columns, rows)
    _print_times(console, result)
    if result.test is not None:
        test = result.test
        console.print(
            f"test: accuracy {test.accuracy:.1%}, loss {test.loss:.4f} on {format_count(test.images, 'image')}"
        )
    print_skipped(console, result.skipped)
    console.print(f"best checkpoint: {result.best_loss}", soft_wrap=True)
    console.print(f"next: {result.next_command}", soft_wrap=True)


def _print_times(console: Console, result: TrainResult) -> None:
    """Print the seconds of each stage by activity, without activities that took no time."""
    if result.bottleneck is None:
        return
    activities = [
        field.name
        for field in fields(StageTimes)
        if any(getattr(stage.times, field.name) >= _MIN_SECONDS_SHOWN for stage in result.stages)
    ]
    labels = [_ACTIVITY_LABELS.get(activity, activity) for activity in activities]
    rows = [
        (stage.name, *(f"{getattr(stage.times, activity):.1f}" for activity in activities)) for stage in result.stages
    ]
    print_table(console, ("seconds", *(f">{label}" for label in labels)), rows)
    console.print(result.bottleneck)


def _print_cache(console: Console, result: CacheResult) -> None:
    """Print the entries that were cleared, or else all entries and the limit."""
    if result.cleared:
        _print_cache_entries(console, result.cleared)
        console.print(f"cleared: {format_size(result.freed)}; {format_size(result.bytes)} remain", soft_wrap=True)
        return
    if result.shelves:
        _print_cache_entries(console, result.shelves)
        console.print()
    folder = escape_controls(str(result.folder))
    console.print(f"{folder}: {format_size(result.bytes) if result.shelves else 'empty'}", soft_wrap=True)
    if result.limit:
        limit = f"limit for features and pixels: {format_size(result.limit)}; the least recently used are evicted first"
    else:
        limit = "limit for features and pixels: 0, so they are not cached"
    console.print(f"{limit} (FTCLI_CACHE_LIMIT sets the limit, FTCLI_CACHE the folder)", soft_wrap=True)
    if result.shelves:
        console.print("to clear: ftcli cache clear NAME, or --all", soft_wrap=True)


def _print_cache_entries(console: Console, entries: tuple[CacheEntry, ...]) -> None:
    rows = [
        (
            entry.name,
            entry.kind,
            f"{entry.records:,}",
            format_size(entry.bytes),
            entry.used[:16].replace("T", " "),
            entry.about,
        )
        for entry in entries
    ]
    print_table(console, ("name", "kind", ">records", ">size", "last used, UTC", "content"), rows)


def _print_download(console: Console, result: DownloadResult) -> None:
    console.print(f"{result.name}: {format_count(result.images, 'image')} in {result.root}", soft_wrap=True)
    rows = [(split, name, str(count)) for split, counts in result.splits.items() for name, count in counts.items()]
    print_table(console, ("split", "class", ">images"), rows)
