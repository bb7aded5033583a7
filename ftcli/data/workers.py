"""Worker processes that compute batches, ignore signals, and raise an error if they are killed."""

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
    """Processes that compute dataset[request] for a stream of requests and persist until the pool is closed.

    Workers ignore SIGINT and SIGTERM, which are sent to the whole process group.
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
        """Yield the result of each request, in order. Pending results of an unfinished earlier pass are dropped.

        Raises RunError if a worker was killed; the next pass starts new ones.
        """
        try:
            self._start_pass(requests)
            yield from iter(self._next_result, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            raise RunError(
                f"data.num_workers: a worker that loads images was killed ({error}), probably because memory ran out; "
                "lower data.num_workers or data.batch_size, and resume from the last checkpoint"
            ) from error

    def close(self) -> None:
        """Stop the workers. Another pass starts new ones."""
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is None:
            return
        # torch stops them when the iterator is collected, but a traceback may hold a reference to it.
        iterator._shutdown_workers()
        for process in iterator._workers:
            process.kill()  # has an effect only on a worker that hangs while it reads a file

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
                    generator=torch.Generator(),  # otherwise it consumes numbers of the global generator
                )
            self._iterator = iter(self._loader)

    def _next_result(self) -> Any:
        return None if self._iterator is None else next(self._iterator, None)


class _RequestSampler:
    """The sampler of the DataLoader: it iterates over the requests of the next pass."""

    def __init__(self) -> None:
        self.requests: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.requests


def _return_unchanged(batch: Any) -> Any:
    """Return the result as it is: it is already a batch."""
    return batch


@contextmanager
def _start_workers_quietly() -> Iterator[None]:
    """Start workers that ignore SIGINT and SIGTERM, and undo torch's handler of SIGCHLD.

    Workers inherit the blocked signals. torch's handler would raise at an arbitrary point when a worker dies; without
    it the death is noticed within seconds, when its batch is awaited. The suppressed warnings are about more workers
    than cores and, from Python 3.12 on, about fork with threads, which workers do not use.
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
    """Stop all workers at exit: Python would send them SIGTERM, which they ignore, and wait forever."""
    for pool in list(_open_pools):
        pool.close()
