"""The result of a command on standard output: one JSON document, or tables for people."""

from __future__ import annotations

import json
import sys

from ftcli.console.caches import print_cache_listing
from ftcli.console.comparisons import print_comparison
from ftcli.console.evaluations import print_evaluation
from ftcli.console.extractions import print_extraction
from ftcli.console.inspections import print_inspection
from ftcli.console.models import print_models
from ftcli.console.tables import open_console, print_table
from ftcli.console.training import print_train_result
from ftcli.results import (
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
    TrainResult,
)


def print_result(result: Result, *, as_json: bool) -> None:
    """The result of a command: one JSON document, or tables for people."""
    if as_json or isinstance(result, SchemaResult):  # people read it as programs do
        sys.stdout.write(json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return
    console = open_console(sys.stdout)
    match result:
        case InspectResult():
            print_inspection(console, result)
        case ModelListResult():
            print_models(console, result)
        case TrainResult():
            print_train_result(console, result)
        case EvaluateResult():
            print_evaluation(console, result)
        case ExtractResult():
            print_extraction(console, result)
        case CompareResult():
            print_comparison(console, result)
        case CacheResult():
            print_cache_listing(console, result)
        case DownloadResult():
            rows = [(split, name, str(n)) for split, counts in result.splits.items() for name, n in counts.items()]
            console.print(f"{result.name}: {result.images} images in {result.root}", soft_wrap=True)
            print_table(console, ("split", "class", ">images"), rows)
        case InitResult() if result.out is None:
            sys.stdout.write(result.recipe)
        case InitResult():
            console.print(f"recipe: {result.out}", soft_wrap=True)
            console.print(f"next: {result.next_command}", soft_wrap=True)
        case _:
            raise TypeError(f"no way to print {type(result).__name__}")
