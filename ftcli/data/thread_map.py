"""An ordered map over items with threads, for functions that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from ftcli import runtime
from ftcli.errors import FtcliError

_MAX_THREADS = 8  # each may hold a large decoded image

_ItemT = TypeVar("_ItemT")
_ResultT = TypeVar("_ResultT")


class ThreadedMap:
    """A pool of threads that computes a function of each item, in order; with one thread the caller computes it.

    Threads start when they are needed, each with `initializer`, and are idle between two passes. They are meant for
    functions that release the GIL, as Pillow does. `prefetch` more items than threads are submitted ahead.
    """

    def __init__(self, num_threads: int, prefetch: int = 0, initializer: Callable[[], None] | None = None) -> None:
        self._num_threads = num_threads
        self._max_pending = num_threads + prefetch
        self._initializer = initializer
        self._executor: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Stop the threads. Another pass starts new ones."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_ItemT], _ResultT], items: Iterable[_ItemT]) -> Generator[_ResultT, None, None]:
        """Yield the result of each item, in order, with at most `num_threads + prefetch` pending.

        Errors, of the function or of the iterable, are raised after the results of the items before. Close a pass that
        is abandoned: it waits for running calls.
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
    """Submit the items one by one; an error of the iterable becomes a failed future."""
    try:
        for item in items:
            yield executor.submit(function, item)
    except FtcliError as error:  # such as a corrupt image: earlier results are yielded first
        yield _make_failed_future(error)


def _make_failed_future(error: FtcliError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def default_num_threads() -> int:
    """Return the number of threads that decode images: the number of available cores, at most 8."""
    return min(_MAX_THREADS, runtime.count_cores())
