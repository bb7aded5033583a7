from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from ftcli import runtime
from ftcli.data.workers import WorkerPool
from ftcli.errors import RunError


class Squares(Dataset[Any]):
    """A dataset of (n, a tensor of n squared) that fails for -1 with a programming error."""

    def __getitem__(self, request: int) -> tuple[int, torch.Tensor]:
        if request < 0:
            raise RuntimeError("a programming error")
        return request, torch.full((100, 100), request**2)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    results = WorkerPool(Squares(), 2, pin_memory=False)
    yield results
    results.close()
    assert not multiprocessing.active_children()


def run_requests(pool: WorkerPool, *requests: int) -> list[int]:
    results = list(pool.run(iter(requests)))
    assert all(bool((square == request**2).all()) for request, square in results)
    return [request for request, _ in results]


def test_worker_pool_preserves_order(pool: WorkerPool) -> None:
    assert run_requests(pool, *range(30)) == list(range(30))
    first = {process.pid for process in multiprocessing.active_children()}
    assert run_requests(pool, 3, 1, 2) == [3, 1, 2]
    assert run_requests(pool) == []
    assert {process.pid for process in multiprocessing.active_children()} == first
    assert len(first) == 2


def test_worker_pool_killed_during_pass(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch installs its handler of SIGCHLD once per process; let it do so again.
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    handler = signal.getsignal(signal.SIGCHLD)
    run = pool.run(iter(range(30)))
    next(run)
    assert signal.getsignal(signal.SIGCHLD) == handler
    time.sleep(0.3)  # until workers are idle: a killed worker could hold the lock of the queue
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(RunError) as error:
        list(run)
    assert str(error.value) == (
        f"data.num_workers: a worker that loads images was killed ({error.value.__cause__}), probably because memory "
        "ran out; lower data.num_workers or data.batch_size, and resume from the last checkpoint"
    )
    assert run_requests(pool, *range(30)) == list(range(30))


@pytest.mark.slow
def test_worker_pool_killed_between_passes(pool: WorkerPool) -> None:
    run_requests(pool, 1, 2)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(
        RunError, match=r"^data\.num_workers: a worker that loads images was killed \(DataLoader worker"
    ):
        run_requests(pool, 1, 2)


def test_worker_pool_reraises_programming_errors(pool: WorkerPool) -> None:
    with pytest.raises(RuntimeError, match="a programming error") as error:
        run_requests(pool, 1, -1)
    assert run_requests(pool, 1, 2) == [1, 2]
    pool.close()
    # The workers end although the traceback holds a reference to torch's iterator.
    assert error.traceback
    assert not multiprocessing.active_children()


def test_worker_pool_ignores_signals(pool: WorkerPool) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    run = pool.run(iter(range(30)))
    next(run)
    processes = multiprocessing.active_children()
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert [request for request, _ in run] == list(range(1, 30))
    assert all(process.is_alive() for process in processes)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_worker_pool_outside_main_thread(pool: WorkerPool) -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.extend(run_requests(pool, 1, 2, 3)))
    thread.start()
    thread.join()
    assert results == [1, 2, 3]


def test_worker_pool_no_warning_above_core_count() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        large_pool = WorkerPool(Squares(), runtime.count_cores() + 1, pin_memory=False)
        assert run_requests(large_pool, 1, 2, 3) == [1, 2, 3]
        large_pool.close()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.slow
def test_worker_pool_does_not_block_exit() -> None:
    program = textwrap.dedent(
        """
        from ftcli.data.workers import WorkerPool
        pool = WorkerPool([10, 20, 30], 2, pin_memory=False)
        run = pool.run(iter([0, 1, 2]))
        print(next(run))
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")
