"""`python -m benchmarks.clocked COMMAND…` prints the seconds of an ftcli command after its network is created.

Imports, recipe or checkpoint, listing of images and creation of the network are excluded, as in the other loops. Cut,
fingerprint, reading of images, forward pass, metrics and files are included.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

TIMED_MODULES = ("ftcli.extraction.extract", "ftcli.evaluation.eval_setup")
"""The modules in which the commands first use the network: they cut it."""

PRELOADED_MODULES = (
    "torchvision",
    "scipy.stats",
    "sklearn.svm",
    "ftcli.extraction.extract",
    "ftcli.evaluation.evaluate",
)
"""Modules that the measured commands import when they run."""


def main() -> None:
    """Run the command line; the last line printed is {"seconds": …, "result": the output of the command}."""
    from ftcli.cli import main as run

    for module in PRELOADED_MODULES:
        importlib.import_module(module)
    start_times = _record_start_times()
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    code = 0
    with redirect_stdout(output):
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    ended = time.perf_counter()
    if code:
        sys.exit(code)
    output.seek(0)
    print(json.dumps({"seconds": ended - start_times[0], "result": json.loads(output.read())}))


def _record_start_times() -> list[float]:
    """Record the times at which a created network is first used."""
    start_times: list[float] = []
    for name in TIMED_MODULES:
        module: Any = importlib.import_module(name)
        original = module.cut_at_head

        def record(*arguments: Any, original: Any = original) -> Any:
            start_times.append(time.perf_counter())
            return original(*arguments)

        module.cut_at_head = record
    return start_times


if __name__ == "__main__":
    main()
