"""Measured programs: separate processes that print JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
"""The project's folder, the working directory of every program."""

_QUIET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class ProgramResult:
    """The JSON document of a program, its seconds, and the peak memory of it or one of its children in bytes.

    Linux includes the process that started it, so that must be small.
    """

    document: dict[str, Any]
    seconds: float
    peak_memory: int


def run_program(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> ProgramResult:
    """Run a program to its end and read the JSON document that its standard output ends with.

    Exits with the program's output if it fails.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **_QUIET, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        stdout.seek(0), stderr.seek(0)
        output = stdout.read()
        if process.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}: ended with {process.returncode}\n{stderr.read()}{output}")
    return ProgramResult(parse_last_json(output), seconds, usage.ru_maxrss * 1024)


def parse_last_json(output: str) -> dict[str, Any]:
    """Parse the JSON object at the end of a text, on one line or several."""
    begin = f"\n{output}".rindex("\n{")
    document: dict[str, Any] = json.loads(output[begin:])
    return document
