"""A cache of a test's own, and other processes that use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftcli.results import NullReporter

SUBPROCESS_PRELUDE = """
import sys
from ftcli.caching import filling
from ftcli.caching.store import Store, make_key
from ftcli.results import NullReporter

def make_store():
    return Store("features", {"network": "n"}, "features of n")

def add(filler, names):
    for name in names:
        filler.add(make_key(name), name.encode() * 100)

def say(word):
    print(word, flush=True)

"""


class RecordingReporter(NullReporter):
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FTCLI_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


StartProcess = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(cache: Path) -> Iterator[StartProcess]:
    """Run Python code in a process of its own, after PRELUDE; it is killed at the end, if it has not ended."""
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
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().strip()
