"""An empty cache for each test, and processes that share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftcli.results import NullReporter, ProgressTask

TASK = ProgressTask("test", NullReporter())

SUBPROCESS_PRELUDE = """
import sys
from ftcli.caching import store as store_module
from ftcli.caching.store import Store, make_key
from ftcli.results import NullReporter, ProgressTask

TASK = ProgressTask("test", NullReporter())

def make_store():
    return Store("features", {"network": "n"}, "features of n")

def add(writer, names):
    for name in names:
        writer.add(make_key(name), name.encode() * 100)

def say(word):
    print(word, flush=True)

"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of an empty cache."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FTCLI_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


StartProcess = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(cache: Path) -> Iterator[StartProcess]:
    """Run Python code after SUBPROCESS_PRELUDE in another process, which is killed after the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SUBPROCESS_PRELUDE + code]
        process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env={**os.environ})
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().strip()
