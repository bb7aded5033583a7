"""What a benchmark ran on, and which state of the code it measured."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.processes import ROOT

OWN = ("torch", "torchvision", "timm", "numpy", "pillow")
THEIRS = (*OWN[:3], "fastai", "transformers", "accelerate")
_ASK = "import json, sys; from importlib.metadata import version; print(json.dumps([version(n) for n in sys.argv[1:]]))"
_MEASURED = ("ftcli/**/*.py", "benchmarks/peers/*.py", "benchmarks/[cjr]*.py", "requirements.lock")
"""What a change of may change the figures."""


def digest_code() -> str:
    """A short digest of all that a measurement depends on: ftcli, the other loops, the jobs and the versions."""
    told = hashlib.sha256()
    for pattern in (*_MEASURED, "benchmarks/requirements.txt"):
        for path in sorted(ROOT.glob(pattern)):
            told.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return told.hexdigest()[:12]


def describe_machine(peers: Path) -> Iterator[str]:
    """Sentences about the processor, the memory and the versions in both environments."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {memory:.0f} GB of memory, no GPU in use."
    yield f"ftcli: Python {platform.python_version()}, {_list((name, version(name)) for name in OWN)}."
    told = subprocess.run([peers, "-c", _ASK, *THEIRS], check=True, capture_output=True, text=True).stdout
    yield f"The other loops: {_list(zip(THEIRS, json.loads(told), strict=True))}."


def find_peers(folder: Path) -> Path:
    """The Python of the environment that has the other loops' packages. Exits where there is none."""
    python = folder.absolute() / "bin/python"
    if not python.exists():
        sys.exit(f"{folder}: no environment with the other loops is there; make bench makes it")
    return python


def _list(versions: Iterator[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions)
