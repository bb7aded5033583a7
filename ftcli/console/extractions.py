"""How features and probes look."""

from __future__ import annotations

from rich.console import Console

from ftcli.results import Extraction


def print_extraction(console: Console, result: Extraction) -> None:
    console.print(f"{result.images} images", soft_wrap=True)
