"""`ftcli compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON, OTHER_DATA, SPLIT
from ftcli.console import TerminalReporter, print_result


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Two or more: folders of runs, or checkpoints such as stages/head.pt."),
    ],
    data: OTHER_DATA = None,
    split: SPLIT = None,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="The picture of the curves. Without it: comparison.png.")
    ] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Set runs beside one another: what differs in their recipes, their curves, and whether one is truly better."""
    from ftcli.comparison import CompareArgs
    from ftcli.comparison import compare as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        result = run(CompareArgs(runs=tuple(runs), data=data, split=split, out=out, device=device), reporter)
    print_result(result, as_json=as_json)
