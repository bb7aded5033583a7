from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ftcli import runtime
from ftcli.data.threads import Threads, choose_threads
from ftcli.errors import DataError

PATIENCE = 20.0


def count_readers() -> int:
    return sum(thread.name.startswith("ftcli") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    def take(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return 10 * item

    threads = Threads(count)
    for items in (range(17), range(1), range(0)):
        assert list(threads.map(take, items)) == [10 * item for item in items]
    threads.close()


def test_as_many_are_under_way_as_there_are_threads() -> None:
    together = threading.Barrier(3)
    threads = Threads(3)
    assert sorted(threads.map(lambda _: together.wait(PATIENCE) % 3, range(3))) == [0, 1, 2]
    threads.close()


def test_no_more_than_that_wait_to_be_taken() -> None:
    begun: list[int] = []
    threads = Threads(3)
    results = threads.map(begun.append, range(20))
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)
        assert len(begun) <= taken + 3
    results.close()
    threads.close()


def test_one_alone_is_no_thread() -> None:
    here = threading.get_ident()
    assert set(Threads(1).map(lambda _: threading.get_ident(), range(5))) == {here}
    assert here not in set(Threads(2).map(lambda _: threading.get_ident(), range(5)))


def test_an_error_is_raised_where_its_turn_comes() -> None:
    def refuse(item: int) -> int:
        if item == 3:
            time.sleep(0.05)
            raise KeyError("the first")
        if item == 4:
            raise KeyError("the second, and sooner")
        return item

    threads = Threads(2)
    taken: list[int] = []
    with pytest.raises(KeyError, match="the first"):
        taken.extend(threads.map(refuse, range(9)))
    assert taken == [0, 1, 2]
    assert list(threads.map(refuse, range(3))) == [0, 1, 2]
    threads.close()


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_the_items_raise_comes_after_the_results_before_it(count: int, ahead: int) -> None:
    def give() -> Iterator[int]:
        yield from range(7)
        raise DataError("no more")

    threads = Threads(count, ahead)
    taken: list[int] = []
    with pytest.raises(DataError, match="no more"):
        taken.extend(threads.map(lambda item: 10 * item, give()))
    assert taken == [10 * item for item in range(7)]
    threads.close()


def test_a_pass_that_is_left_leaves_nothing_at_work() -> None:
    working: set[int] = set()

    def work(item: int) -> int:
        working.add(item)
        time.sleep(0.05)
        working.remove(item)
        return item

    threads = Threads(2)
    for _ in range(3):
        results = threads.map(work, range(50))
        assert next(results) == 0
        results.close()
        assert not working
    threads.close()


def test_threads_stay_between_passes_and_end_with_close() -> None:
    before = count_readers()
    threads = Threads(2)
    assert count_readers() == before
    list(threads.map(abs, range(9)))
    list(threads.map(abs, range(9)))
    assert before < count_readers() <= before + 2
    threads.close()
    threads.close()
    assert count_readers() == before
    assert list(threads.map(abs, range(3))) == [0, 1, 2]
    results = threads.map(abs, range(9))
    next(results)
    threads.close()
    results.close()
    assert count_readers() == before


LEFT = """
import signal, sys, time
from ftcli.data.threads import Threads
threads = Threads(2)
results = threads.map(lambda item: time.sleep(0.2), range(1000))
next(results)
print("begun", flush=True)
if sys.argv[1:] == ["wait"]:
    for _ in results:
        pass
"""


def test_a_process_that_forgets_them_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", LEFT], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\n", "")


def test_a_process_that_is_interrupted_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEFT, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)  # a thousand items take longer
    assert process.returncode == -signal.SIGINT
    assert told.endswith("KeyboardInterrupt\n")


def test_there_is_a_thread_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(runtime, "count_cores", lambda cores=cores: cores)
        assert choose_threads() == expected
