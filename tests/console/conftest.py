"""A real terminal, in tmux."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Screen:
    """The text of a terminal, without and with escape codes of colors."""

    text: str
    text_with_codes: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.rstrip().splitlines()]


RunInTmux = Callable[..., Screen]
"""(columns, *arguments of ftcli, folder, until, then, **environment) -> Screen; `then` is appended to the command."""


@pytest.fixture
def terminal(tmp_path: Path) -> RunInTmux:
    """Return a function that runs ftcli in a terminal and returns the screen once it shows `until`."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux: apt-get install tmux")
    sockets = itertools.count()

    def run_in_tmux(
        columns: int, *arguments: str, folder: Path, until: str = "ENDED WITH", then: str = "", **environment: str
    ) -> Screen:
        variables = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **environment}
        environment_command = [
            "env",
            "-u",
            "NO_COLOR",
            "-u",
            "COLUMNS",
            *(f"{key}={value}" for key, value in variables.items()),
        ]
        command = shlex.join([*environment_command, sys.executable, "-m", "ftcli", *arguments])
        size = ["-x", str(columns), "-y", "50", "-c", str(folder)]
        tmux = ["tmux", "-S", str(tmp_path / f"tmux-{next(sockets)}"), "-f", "/dev/null"]
        shell = f"{command} {then}; echo ENDED WITH $?; sleep 60"
        subprocess.run([*tmux, "new-session", "-d", *size, shell], check=True)
        try:
            return _wait_for_text(tmux, until)
        finally:
            subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)

    return run_in_tmux


def _wait_for_text(tmux: list[str], until: str) -> Screen:
    start_time = time.monotonic()
    while time.monotonic() - start_time < 60:
        capture = [*tmux, "capture-pane", "-p", "-S", "-200"]
        text = subprocess.run(capture, check=True, capture_output=True, text=True).stdout
        if until in text:
            coded = subprocess.run([*capture, "-e"], check=True, capture_output=True, text=True).stdout
            return Screen(text, coded)
        time.sleep(0.05)
    raise AssertionError(f"the terminal never showed {until!r}:\n{text}")
