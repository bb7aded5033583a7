"""Processes that make batches: quiet, deaf to signals, and missed when they die."""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ftcli.errors import RunError


class WorkerPool:
    """`count` processes that compute maker[job] for one job after another and stay for the next pass.

    They take no notice of SIGINT and SIGTERM, which reach the whole group of processes: this one decides what they
    mean. They end with `close`, or with this process.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int, pin_memory: bool) -> None:
        self._sampler = _RequestSampler()
        self._dataset = dataset
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None
        _open_pools.add(self)

    def run(self, requests: Iterator[Any]) -> Iterator[Any]:
        """What each job makes, in order. Of a pass that was left early, what is still under way is dropped.

        Raises RunError when a process was killed; the next pass then starts new ones.
        """
        try:
            self._start_pass(requests)
            yield from iter(self._next_result, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            raise RunError(
                f"data.num_workers: a process that loads images was killed ({error}), as happens when memory runs out; "
                "lower data.num_workers or data.batch_size, and go on from the last checkpoint"
            ) from error

    def close(self) -> None:
        """End the processes. Another pass starts new ones."""
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is None:
            return
        # Asked for by name: torch does it when the stream is forgotten, but a traceback may remember it.
        iterator._shutdown_workers()
        for process in iterator._workers:
            process.kill()  # no more than a formality, unless one hangs on its file

    def _start_pass(self, requests: Iterator[Any]) -> None:
        self._sampler.requests = requests
        with _start_workers_quietly():
            if self._loader is None:
                self._loader = DataLoader(
                    self._dataset,
                    batch_size=None,
                    sampler=self._sampler,
                    num_workers=self._num_workers,
                    collate_fn=_return_unchanged,
                    pin_memory=self._pin_memory,
                    persistent_workers=True,
                    multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
                    generator=torch.Generator(),  # or it would draw from the global one
                )
            self._iterator = iter(self._loader)

    def _next_result(self) -> Any:
        return None if self._iterator is None else next(self._iterator, None)


class _RequestSampler:
    """The jobs of the next pass. The DataLoader asks for them anew at the beginning of each."""

    def __init__(self) -> None:
        self.requests: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.requests


def _return_unchanged(batch: Any) -> Any:
    """What was made, as it is: it is a batch already."""
    return batch


@contextmanager
def _start_workers_quietly() -> Iterator[None]:
    """Start workers so that they and torch's bookkeeping disturb nothing here.

    Workers inherit the mask: SIGINT and SIGTERM never reach them. torch's handler of SIGCHLD would raise in the middle
    of whatever this process does when a worker dies; without it that is noticed, within seconds, where its batch is
    awaited. The warnings are that a recipe asks for more workers than cores, and, from Python 3.12 on, that fork meets
    threads: workers use none of those of the parent.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register
def _close_all_pools() -> None:
    """Python would end workers with SIGTERM, which they do not see, and wait for them for ever."""
    for pool in list(_open_pools):
        pool.close()
