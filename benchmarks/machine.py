"""The machine and the version of the code of a benchmark."""

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

FTCLI_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
PEER_PACKAGES = (*FTCLI_PACKAGES[:3], "fastai", "transformers", "accelerate")
_VERSIONS_SCRIPT = (
    "import json, sys; from importlib.metadata import version; print(json.dumps([version(n) for n in sys.argv[1:]]))"
)
_CODE_PATTERNS = ("ftcli/**/*.py", "benchmarks/peers/*.py", "benchmarks/[cjr]*.py", "requirements.lock")
"""Files that can change a measurement."""


def hash_code() -> str:
    """Return a short digest of ftcli, the other loops, the jobs and the versions."""
    digest = hashlib.sha256()
    for pattern in (*_CODE_PATTERNS, "benchmarks/requirements.txt"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe_machine(peer_python: Path) -> Iterator[str]:
    """Describe the processor, the memory and the versions of both environments."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {memory:.0f} GB of memory, no GPU in use."
    own_versions = _format_versions((name, version(name)) for name in FTCLI_PACKAGES)
    yield f"ftcli: Python {platform.python_version()}, {own_versions}."
    versions = subprocess.run(
        [peer_python, "-c", _VERSIONS_SCRIPT, *PEER_PACKAGES], check=True, capture_output=True, text=True
    ).stdout
    yield f"The other loops: {_format_versions(zip(PEER_PACKAGES, json.loads(versions), strict=True))}."


def find_peer_python(folder: Path) -> Path:
    """Return the Python of the environment of the other loops. Exits if it does not exist."""
    python = folder.absolute() / "bin/python"
    if not python.exists():
        sys.exit(f"{folder}: the environment of the other loops does not exist; run make bench")
    return python


def _format_versions(versions: Iterator[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions)
