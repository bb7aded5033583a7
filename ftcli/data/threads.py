"""Threads that share work within this process, where other processes would cost more than they save."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from ftcli import runtime
from ftcli.errors import FtcliError

_MOST = 8  # each may hold an image that fills much of the memory

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Threads:
    """`count` threads that compute a function of one item after another; with one alone the caller does it.

    They are for what lets go of Python's lock, as Pillow does while it decodes and resizes. They start when they are
    needed, each with `begin`, and end with `close`, when they are forgotten, or with this process; none is at work
    between two passes. So many items wait for them `ahead`, for those that take time to come.
    """

    def __init__(self, count: int, ahead: int = 0, begin: Callable[[], None] | None = None) -> None:
        self._count = count
        self._most = count + ahead
        self._begin = begin
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads. Another pass starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
        """What the function makes of each item, in their order.

        No more than `count` results, and those `ahead`, are under way or wait to be taken. What the function raises is
        raised where its item's turn comes, and faults of the items after the results of those before. A pass that is
        left early waits for what is under way: close it.
        """
        coming = iter(items)
        if self._count < 2:
            yield from map(function, coming)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, "ftcli", self._begin)
        begun = _begin(self._pool, function, coming)
        under_way: deque[Future[_Result]] = deque()
        try:
            under_way.extend(islice(begun, self._most))
            while under_way:
                result = under_way[0].result()
                under_way.popleft()
                under_way.extend(islice(begun, 1))
                yield result
        finally:
            wait([future for future in under_way if not future.cancel()])


def _begin(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[Future[_Result]]:
    """The work on each item, as soon as it is asked for; a fault of the items comes as work that failed."""
    try:
        for item in items:
            yield pool.submit(function, item)
    except FtcliError as error:  # a broken image, say: what came before it is to be kept
        yield _fail(error)


def _fail(error: FtcliError) -> Future[Any]:
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed


def choose_threads() -> int:
    """The number of threads that read images: as many as this process has cores, at most 8."""
    return min(_MOST, runtime.count_cores())
