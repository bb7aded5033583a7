"""How a list of models looks."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import print_table
from ftcli.results import ModelListResult

_TIMM_PREFIX = "timm/"


def print_models(console: Console, result: ModelListResult) -> None:
    """A line a model. Without a glob timm's, which are many and of unknown size, are counted alone."""
    shown = [row for row in result.models if result.glob is not None or not row.name.startswith(_TIMM_PREFIX)]
    rows = [
        (
            row.name,
            "-" if row.parameters is None else f"{row.parameters:,}",
            "-" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.2f}",
            str(row.image_size),
            "-" if row.accuracy is None else f"{row.accuracy:.2f}",
        )
        for row in shown
    ]
    print_table(console, ("model", ">parameters", ">G multiply-adds", ">pixels", ">ImageNet top-1 %"), rows)
    if num_hidden := len(result.models) - len(shown):
        console.print(
            f"\ntimm has {num_hidden:,} more: ftcli inspect 'timm/*' lists their names, and a glob that matches few of them, "
            "such as 'timm/*lite*', their sizes too",
            soft_wrap=True,
        )
