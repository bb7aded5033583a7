"""Threads that share work within this process, where other processes would cost more than they save."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from ftcli import runtime
from ftcli.errors import FtcliError

_MAX_THREADS = 8  # each may hold an image that fills much of the memory

_ItemT = TypeVar("_ItemT")
_ResultT = TypeVar("_ResultT")


class ThreadedMap:
    """`count` threads that compute a function of one item after another; with one alone the caller does it.

    They are for what lets go of Python's lock, as Pillow does while it decodes and resizes. They start when they are
    needed, each with `begin`, and end with `close`, when they are forgotten, or with this process; none is at work
    between two passes. So many items wait for them `ahead`, for those that take time to come.
    """

    def __init__(self, num_threads: int, prefetch: int = 0, initializer: Callable[[], None] | None = None) -> None:
        self._num_threads = num_threads
        self._max_pending = num_threads + prefetch
        self._initializer = initializer
        self._executor: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads. Another pass starts new ones."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_ItemT], _ResultT], items: Iterable[_ItemT]) -> Generator[_ResultT, None, None]:
        """What the function makes of each item, in their order.

        No more than `count` results, and those `ahead`, are under way or wait to be taken. What the function raises is
        raised where its item's turn comes, and faults of the items after the results of those before. A pass that is
        left early waits for what is under way: close it.
        """
        remaining = iter(items)
        if self._num_threads < 2:
            yield from map(function, remaining)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._num_threads, "ftcli", self._initializer)
        futures = _submit_items(self._executor, function, remaining)
        pending: deque[Future[_ResultT]] = deque()
        try:
            pending.extend(islice(futures, self._max_pending))
            while pending:
                result = pending[0].result()
                pending.popleft()
                pending.extend(islice(futures, 1))
                yield result
        finally:
            wait([future for future in pending if not future.cancel()])


def _submit_items(
    executor: ThreadPoolExecutor, function: Callable[[_ItemT], _ResultT], items: Iterable[_ItemT]
) -> Iterator[Future[_ResultT]]:
    """The work on each item, as soon as it is asked for; a fault of the items comes as work that failed."""
    try:
        for item in items:
            yield executor.submit(function, item)
    except FtcliError as error:  # a broken image, say: what came before it is to be kept
        yield _make_failed_future(error)


def _make_failed_future(error: FtcliError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def default_num_threads() -> int:
    """The number of threads that read images: as many as this process has cores, at most 8."""
    return min(_MAX_THREADS, runtime.count_cores())
