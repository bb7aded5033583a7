from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ftcli import runtime
from ftcli.data.thread_map import ThreadedMap, default_num_threads
from ftcli.errors import DataError

TIMEOUT = 20.0


def count_threads() -> int:
    return sum(thread.name.startswith("ftcli") for thread in threading.enumerate())


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threaded_map_preserves_order(num_threads: int) -> None:
    def take(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return 10 * item

    threads = ThreadedMap(num_threads)
    for items in (range(17), range(1), range(0)):
        assert list(threads.map(take, items)) == [10 * item for item in items]
    threads.close()


def test_threaded_map_runs_num_threads_at_once() -> None:
    barrier = threading.Barrier(3)
    threads = ThreadedMap(3)
    assert sorted(threads.map(lambda _: barrier.wait(TIMEOUT) % 3, range(3))) == [0, 1, 2]
    threads.close()


def test_threaded_map_limits_pending() -> None:
    started: list[int] = []
    threads = ThreadedMap(3)
    results = threads.map(started.append, range(20))
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)
        assert len(started) <= taken + 3
    results.close()
    threads.close()


def test_threaded_map_single_runs_in_caller() -> None:
    caller = threading.get_ident()
    assert set(ThreadedMap(1).map(lambda _: threading.get_ident(), range(5))) == {caller}
    assert caller not in set(ThreadedMap(2).map(lambda _: threading.get_ident(), range(5)))


def test_threaded_map_raises_in_order() -> None:
    def fail_twice(item: int) -> int:
        if item == 3:
            time.sleep(0.05)
            raise KeyError("first")
        if item == 4:
            raise KeyError("second")
        return item

    threads = ThreadedMap(2)
    taken: list[int] = []
    with pytest.raises(KeyError, match="first"):
        taken.extend(threads.map(fail_twice, range(9)))
    assert taken == [0, 1, 2]
    assert list(threads.map(fail_twice, range(3))) == [0, 1, 2]
    threads.close()


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threaded_map_raises_item_errors_in_order(num_threads: int, prefetch: int) -> None:
    def yield_items() -> Iterator[int]:
        yield from range(7)
        raise DataError("no more")

    threads = ThreadedMap(num_threads, prefetch)
    taken: list[int] = []
    with pytest.raises(DataError, match="no more"):
        taken.extend(threads.map(lambda item: 10 * item, yield_items()))
    assert taken == [10 * item for item in range(7)]
    threads.close()


def test_threaded_map_abandoned_pass_stops_work() -> None:
    working: set[int] = set()

    def work(item: int) -> int:
        working.add(item)
        time.sleep(0.05)
        working.remove(item)
        return item

    threads = ThreadedMap(2)
    for _ in range(3):
        results = threads.map(work, range(50))
        assert next(results) == 0
        results.close()
        assert not working
    threads.close()


def test_threaded_map_threads_persist_until_close() -> None:
    before = count_threads()
    threads = ThreadedMap(2)
    assert count_threads() == before
    list(threads.map(abs, range(9)))
    list(threads.map(abs, range(9)))
    assert before < count_threads() <= before + 2
    threads.close()
    threads.close()
    assert count_threads() == before
    assert list(threads.map(abs, range(3))) == [0, 1, 2]
    results = threads.map(abs, range(9))
    next(results)
    threads.close()
    results.close()
    assert count_threads() == before


ABANDONED_PASS = """
import signal, sys, time
from ftcli.data.thread_map import ThreadedMap
threads = ThreadedMap(2)
results = threads.map(lambda item: time.sleep(0.2), range(1000))
next(results)
print("started", flush=True)
if sys.argv[1:] == ["wait"]:
    for _ in results:
        pass
"""


def test_threaded_map_does_not_block_exit() -> None:
    ended = subprocess.run([sys.executable, "-c", ABANDONED_PASS], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "started\n", "")


def test_threaded_map_does_not_block_interrupt() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ABANDONED_PASS, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)  # all items would take longer
    assert process.returncode == -signal.SIGINT
    assert stderr.endswith("KeyboardInterrupt\n")


def test_default_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(runtime, "count_cores", lambda cores=cores: cores)
        assert default_num_threads() == expected
