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

PLACES = ("ftcli.analysis.extraction.passes", "ftcli.analysis.evaluation.measurement")
"""Where the commands first do something with the network that they have built: they look for its cut."""

MODULES = ("torchvision", "scipy.stats", "sklearn.svm", "ftcli.analysis.extraction", "ftcli.analysis.evaluation")
"""What the commands that are measured so import when they run."""


def main() -> None:
    """Run what the command line says; the last line is {"seconds": …, "result": what the command printed}."""
    from ftcli.cli import main as run

    for module in MODULES:
        importlib.import_module(module)
    begun = _note_beginnings()
    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    code = 0
    with redirect_stdout(told):
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    ended = time.perf_counter()
    if code:
        sys.exit(code)
    told.seek(0)
    print(json.dumps({"seconds": ended - begun[0], "result": json.loads(told.read())}))


def _note_beginnings() -> list[float]:
    """The moments at which a network that was built is looked at, from now on."""
    begun: list[float] = []
    for name in PLACES:
        module: Any = importlib.import_module(name)
        look = module.open_inputs

        def note(*arguments: Any, look: Any = look) -> Any:
            begun.append(time.perf_counter())
            return look(*arguments)

        module.open_inputs = note
    return begun


if __name__ == "__main__":
    main()
