"""How comparisons of runs look."""

from __future__ import annotations

from rich.console import Console

from ftcli.results import Comparison


def print_comparison(console: Console, result: Comparison) -> None:
    console.print(f"{len(result.runs)} runs", soft_wrap=True)
