"""Fixtures that run `ftcli` in a process that can be killed at a given moment."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Training = Callable[..., int]


@dataclass(frozen=True)
class Kill:
    """A signal to send at a call of the reporter: ("update_progress", task, done) or ("log_epoch", stage, epoch)."""

    signum: int
    moment: tuple[str, str, int]


def _run_ftcli(
    folder: str,
    arguments: tuple[str, ...],
    kill: Kill | None,
    num_signals: int,
    save_interval_factor: float,
    cache: str,
) -> None:
    from ftcli import cli
    from ftcli.console import TerminalReporter
    from ftcli.results import EpochMetrics, Progress
    from ftcli.training import checkpointing

    gc.freeze()  # no collection visits, and so copies, the memory of the server's imports
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["ftcli", *arguments]
    if cache:
        os.environ["FTCLI_CACHE"] = str(Path(cache).absolute())
    checkpointing.SAVE_INTERVAL_FACTOR = save_interval_factor

    def kill_at_moment(*moment: Any) -> None:
        if kill is not None and kill.moment == moment:
            for _ in range(num_signals):
                os.kill(os.getpid(), kill.signum)

    def update_progress(_self: TerminalReporter, progress: Progress) -> None:
        kill_at_moment("update_progress", progress.task, progress.done)

    def log_epoch(_self: TerminalReporter, metrics: EpochMetrics, _num_epochs: int, _is_best: bool) -> None:
        kill_at_moment("log_epoch", metrics.stage, metrics.epoch)

    TerminalReporter.update_progress = update_progress  # type: ignore[assignment, method-assign]
    TerminalReporter.log_epoch = log_epoch  # type: ignore[assignment, method-assign]
    cli.main()


@pytest.fixture(scope="session")
def _server() -> Any:
    # The server imports all that training needs and computes nothing: its children start at once, with sound threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "ftcli.cli",
            "ftcli.training.trainer",
            "ftcli.evaluation.evaluate",
            "ftcli.runs.curves",
            "ftcli.plotting",
            "torchvision",
            "matplotlib.figure",
            "matplotlib.backends.backend_agg",
        ]
    )
    return context


@pytest.fixture
def training(_server: Any) -> Training:
    """Run `ftcli` in a folder and return its exit code, -9 if it was killed.

    By default checkpoints are saved after every epoch. `cache` is the folder of a separate cache.
    """

    def run(
        folder: Path,
        *arguments: str | Path,
        kill: Kill | None = None,
        num_signals: int = 1,
        save_interval_factor: float = 0.0,
        cache: str = "",
    ) -> int:
        args = tuple(map(str, arguments))
        process = _server.Process(
            target=_run_ftcli, args=(str(folder), args, kill, num_signals, save_interval_factor, cache)
        )
        process.start()
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            pytest.fail(f"still running after 120 s: {arguments}")
        return int(process.exitcode)

    return run


@pytest.fixture
def kill_by() -> Callable[..., Kill]:
    """Return a Kill, given the name of a signal and a moment."""

    def make(name: str, *moment: Any) -> Kill:
        return Kill(getattr(signal, name), (moment[0], moment[1], moment[2]))

    return make
