"""`python -m benchmarks.clocked COMMAND…` tells the seconds of a command of ftcli without those of its imports."""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
from contextlib import redirect_stdout

MODULES = ("torchvision", "scipy.stats", "sklearn.svm", "ftcli.analysis.extraction", "ftcli.analysis.evaluation")
"""What the commands that are measured so import when they run."""


def main() -> None:
    """Run what the command line says; the last line is {"seconds": …, "result": what the command printed}."""
    from ftcli.cli import main as run

    for module in MODULES:
        importlib.import_module(module)
    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    began, code = time.perf_counter(), 0
    with redirect_stdout(told):
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    seconds = time.perf_counter() - began
    if code:
        sys.exit(code)
    told.seek(0)
    print(json.dumps({"seconds": seconds, "result": json.loads(told.read())}))


if __name__ == "__main__":
    main()
