"""`python -m benchmarks.clocked COMMAND…` tells the seconds of a command of ftcli once its network is built.

The clocks of the other loops begin there too: imports, the recipe or checkpoint, the listing of images and the building
of the network lie before it; cutting and digesting the network, reading images, computing, figures and files after it.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

TIMED_MODULES = ("ftcli.extraction.passes", "ftcli.evaluation.eval_setup")
"""Where the commands first do something with the network that they have built: they look for its cut."""

PRELOADED_MODULES = ("torchvision", "scipy.stats", "sklearn.svm", "ftcli.extraction", "ftcli.evaluation.evaluate")
"""What the commands that are measured so import when they run."""


def main() -> None:
    """Run what the command line says; the last line is {"seconds": …, "result": what the command printed}."""
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
    """The moments at which a network that was built is looked at, from now on."""
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
