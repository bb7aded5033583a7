"""`ftcli compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.commands.options import DEVICE, JSON, OTHER_DATA, SPLIT
from ftcli.console import TerminalReporter, print_result

RUNS = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Two or more run directories, or checkpoints such as stages/head.pt."),
]
OUT = Annotated[Path | None, typer.Option(metavar="OUT.png", help="File of the curves plot. Default: comparison.png.")]


def compare(
    runs: RUNS,
    data: OTHER_DATA = None,
    split: SPLIT = None,
    out: OUT = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Compare settings, curves and metrics of runs. Test the differences in accuracy for significance."""
    from ftcli.comparison.compare import CompareArgs
    from ftcli.comparison.compare import compare as run
    from ftcli.runtime import disable_malloc_trim

    disable_malloc_trim()
    with TerminalReporter() as reporter:
        result = run(CompareArgs(runs=tuple(runs), data=data, split=split, out=out, device=device), reporter)
    print_result(result, as_json=as_json)
