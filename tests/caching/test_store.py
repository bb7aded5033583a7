"""Records come back as they were written, or not at all, whatever happens to the processes and the files."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ftcli.caching import filling
from ftcli.caching.chunks import Chunk
from ftcli.caching.store import Filler, Store, make_key
from ftcli.errors import RunError
from ftcli.results import Silent
from tests.caching.conftest import Listener, Start, hear

ROWS = np.random.default_rng(0).normal(size=(300, 25)).astype(np.float32)
KEYS = [make_key("image", str(number)) for number in range(len(ROWS))]


def make_store(about: str = "features of n") -> Store:
    return Store("features", {"network": "n"}, about)


def fill(places: Sequence[int], store: Store | None = None) -> Store:
    store = store or make_store()
    with store.fill(Silent()) as filler:
        add(filler, places)
    return store


def add(filler: Filler | None, places: Iterable[int]) -> None:
    assert filler
    for place in places:
        filler.add(KEYS[place], ROWS[place].data)


def gather(store: Store, places: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rows = np.empty((len(places), ROWS.shape[1]), dtype=np.float32)
    store.gather([KEYS[place] for place in places], rows.view(np.uint8))
    return rows


def list_chunks(store: Store) -> list[Path]:
    return sorted(store.folder.glob("*.chunk"))


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_keys_tell_lists_of_parts_apart() -> None:
    lists: list[tuple[str | bytes, ...]] = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), (b"\0",), (), ("\udcff",)]
    keys = {make_key(*parts) for parts in lists}
    assert len(keys) == len(lists)
    assert {len(key) for key in keys} == {16}
    assert make_key("é") == make_key("é".encode())


def test_records_come_back_in_the_order_they_are_asked_for(cache: Path) -> None:
    store = fill(range(200))
    assert store.find(KEYS) == [True] * 200 + [False] * 100
    places = [7, 199, 0, 7, 3]
    assert (gather(store, places) == ROWS[places]).all()
    record = make_store().read(KEYS[5])
    assert record.readonly
    assert (np.frombuffer(record, dtype=np.float32) == ROWS[5]).all()
    assert store.find([]) == []
    store.gather([], np.empty((0, 4), dtype=np.uint8))
    with pytest.raises(KeyError, match=KEYS[250].hex()):
        gather(store, [3, 250])
    with pytest.raises(KeyError, match=KEYS[250].hex()):
        store.read(KEYS[250])
    with pytest.raises(ValueError, match=r"records have \{100\} bytes, not 99"):
        store.gather(KEYS[:2], np.empty((2, 99), dtype=np.uint8))


def test_keys_that_end_in_zeros_are_keys() -> None:
    keys = [bytes([1, *[0] * 15]), bytes(16), bytes([0] * 14 + [1, 0]), bytes([*[0] * 15, 1])]
    store = make_store()
    for _ in range(9):  # and are merged well
        with store.fill(Silent()) as filler:
            assert filler
            for number, key in enumerate(keys):
                filler.add(key, bytes([number]) * 40)
    assert len(list_chunks(store)) < 9
    assert make_store().find([*keys, bytes([2, *[0] * 15])]) == [True] * 4 + [False]
    rows = np.empty((4, 40), dtype=np.uint8)
    make_store().gather(keys, rows)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]


def test_a_folder_for_each_identity_tells_what_it_is(cache: Path) -> None:
    store = Store("features", {"a": [1, None], "b": "é"}, "features of é")
    assert store.folder == Store("features", {"b": "é", "a": (1, None)}, "other words").folder
    assert store.folder != Store("features", {"a": [1, None], "b": "e"}, "features of é").folder
    assert store.find(KEYS[:1]) == [False]
    assert not cache.exists()
    fill([0], store)
    assert json.loads((store.folder / "identity.json").read_text()) == {
        "about": "features of é",
        "identity": {"a": [1, None], "b": "é"},
    }
    assert store.folder.parent == cache / "features"
    assert len(store.folder.name) == 32


def test_chunks_are_published_after_so_many_bytes_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = make_store(), make_store()
    monkeypatch.setattr(filling, "CHUNK_BYTES", 10 * 112)  # 100 and what aligns the next
    with store.fill(Silent()) as filler:
        add(filler, range(25))
        assert filler
        assert len(list_chunks(store)) == 2
        assert other.find(KEYS[:25]) == [True] * 20 + [False] * 5
        assert filler.find(KEYS[:25]) == [True] * 20 + [False] * 5
        monkeypatch.setattr(filling, "CHUNK_SECONDS", 0.0)
        add(filler, [25])
        assert other.find(KEYS[:26]) == [True] * 26
    assert len(list_chunks(store)) == 3
    assert sorted(path.name for path in store.folder.glob(".*")) == [".lock"]


def test_what_is_whole_is_kept_when_the_context_ends_by_an_error() -> None:
    store = make_store()
    with pytest.raises(ZeroDivisionError), store.fill(Silent()) as filler:
        add(filler, (number // number - 1 + place for place, number in enumerate((1, 1, 0))))
    assert make_store().find(KEYS[:3]) == [True, True, False]
    with store.fill(Silent()):
        pass
    assert len(list_chunks(store)) == 1


def test_a_damaged_record_is_not_there_and_a_later_one_takes_its_place() -> None:
    store = fill(range(10))
    before = make_store()
    assert all(before.find(KEYS[:10]))
    damage(list_chunks(store)[0], 3 * 112 + 50)
    reader = make_store()
    with pytest.raises(KeyError):
        gather(reader, [3])
    assert reader.find(KEYS[:10]) == [True] * 3 + [False] + [True] * 6
    assert (gather(reader, [2, 4]) == ROWS[[2, 4]]).all()
    fill([3], reader)
    for store in (reader, make_store()):
        assert all(store.find(KEYS[:10]))
        assert (gather(store, range(10)) == ROWS[:10]).all()


def test_of_two_records_under_one_key_the_whole_one_counts() -> None:
    fill([1, 2])
    store = fill([2, 3])
    damage(list_chunks(store)[-1], 50)
    reader = make_store()
    assert reader.find(KEYS[1:4]) == [True] * 3
    assert (gather(reader, [2]) == ROWS[[2]]).all()


@pytest.mark.parametrize("place", [-1, -10, -20, -30], ids=["footer", "count", "magic", "index"])
def test_a_chunk_that_is_damaged_is_not_there_and_goes(place: int) -> None:
    store = fill(range(10))
    (path,) = list_chunks(store)
    damage(path, place)
    assert make_store().find(KEYS[:10]) == [False] * 10
    fill(range(5))
    assert path not in list_chunks(store)
    assert make_store().find(KEYS[:10]) == [True] * 5 + [False] * 5


@pytest.mark.parametrize("left", [0, 5, 500, 1479])
def test_a_chunk_that_is_cut_is_not_there(left: int) -> None:
    (path,) = list_chunks(fill(range(10)))
    assert path.stat().st_size == 10 * (112 + 36) + 20
    os.truncate(path, left)
    assert make_store().find(KEYS[:10]) == [False] * 10


def test_what_was_found_stays_readable_when_its_file_leaves() -> None:
    reader = fill(range(10))
    assert all(reader.find(KEYS[:10]))
    for path in list_chunks(reader):
        path.unlink()
    fill([20], reader)
    assert reader.find([KEYS[0], KEYS[20], KEYS[21]]) == [True, True, False]
    assert (gather(reader, [9, 20]) == ROWS[[9, 20]]).all()
    assert make_store().find(KEYS[:1]) == [False]


def test_many_small_chunks_become_one() -> None:
    reader = fill([0])
    assert reader.find(KEYS[:1]) == [True]
    for place in range(1, 20):
        fill([place])
        assert len(list_chunks(reader)) < 8
    for store in (reader, make_store()):
        assert all(store.find(KEYS[:20]))
        assert (gather(store, range(20)) == ROWS[:20]).all()
    assert len(reader._index.chunks) == len(list_chunks(reader))  # what serves nothing more is let go


def test_a_merge_that_is_broken_off_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(7):
        store = fill([place])
    before = list_chunks(store)

    def interrupt(_: Chunk) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Chunk, "release", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fill([7])
    assert len(list_chunks(store)) == 8
    assert set(before) < set(list_chunks(store))
    assert sorted(path.name for path in store.folder.glob(".*")) == [".lock"]
    assert make_store().find(KEYS[:9]) == [True] * 8 + [False]


def test_a_full_disk_is_told_and_leaves_nothing_half(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill([0])

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def choose() -> Iterator[int]:
        yield 1
        monkeypatch.setattr("os.pwrite", refuse)
        yield 2

    with pytest.raises(RunError) as caught, store.fill(Silent()) as filler:
        add(filler, choose())
    assert str(caught.value).startswith(f"{store.folder}/")
    assert ".chunk: the disk is full: 0.0 MB are needed and " in str(caught.value)
    assert len(list_chunks(store)) == 1
    assert sorted(path.name for path in store.folder.glob(".*")) == [".lock"]
    assert make_store().find(KEYS[:3]) == [True, False, False]


def test_a_folder_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("")
    store = make_store()
    with pytest.raises(RunError) as caught, store.fill(Silent()):
        pass
    assert str(caught.value) == (
        f"{store.folder}: cannot be written (Not a directory); check the folder and its permissions"
    )
    with pytest.raises(RunError) as caught:
        store.find(KEYS[:1])
    assert str(caught.value) == (
        f"{store.folder}: cannot be read (Not a directory); check its permissions, or let FTCLI_CACHE name another "
        "folder"
    )


def test_a_second_process_waits_and_finds_what_the_first_has_written(start: Start) -> None:
    first = start(
        "with make_store().fill(Silent()) as filler:\n"
        "    add(filler, ['a', 'b']); say('filling'); sys.stdin.readline(); add(filler, ['c'])\n"
    )
    assert hear(first) == "filling"
    keys = [make_key(name) for name in "abc"]
    listener, store, asked = Listener(), make_store(), 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            assert first.stdin
            first.stdin.write("\n")
            first.stdin.flush()
        return False

    with store.fill(listener, stop) as filler:
        assert filler
        assert filler.find(keys) == [True] * 3
    assert asked >= 3
    assert listener.said == [
        f"features of n: another ftcli (process {first.pid}) is computing this; waiting for it",
    ]
    assert bytes(store.read(keys[2])) == b"c" * 100


def test_whoever_waits_can_be_stopped(start: Start) -> None:
    first = start("with make_store().fill(Silent()): say('filling'); sys.stdin.readline()\n")
    assert hear(first) == "filling"
    with make_store().fill(Silent(), lambda: True) as filler:
        assert filler is None


def test_in_one_process_too_only_one_fills_at_a_time() -> None:
    listener, done = Listener(), threading.Event()
    store = make_store()

    def add_more() -> None:
        with make_store().fill(listener) as filler:
            assert filler
            if all(filler.find(KEYS[:1])):
                done.set()

    thread = threading.Thread(target=add_more)
    with store.fill(Silent()) as filler:
        assert filler
        thread.start()
        time.sleep(0.3)
        add(filler, [0])
        assert not done.is_set()
    thread.join(10)
    assert done.is_set()
    assert len(listener.said) == 1


def test_a_killed_filler_loses_only_what_was_not_published(start: Start) -> None:
    process = start(
        "filling.CHUNK_BYTES = 300\n"
        "with make_store().fill(Silent()) as filler:\n"
        "    add(filler, 'abcdefg'); say('added'); sys.stdin.readline()\n"
    )
    assert hear(process) == "added"
    store = make_store()
    (temporary,) = store.folder.glob(".*.tmp")
    process.kill()
    process.wait()
    keys = [make_key(name) for name in "abcdefg"]
    assert store.find(keys) == [True] * 6 + [False]
    assert [bytes(store.read(key)) for key in keys[:6]] == [name.encode() * 100 for name in "abcdef"]
    with store.fill(Silent()) as filler:
        assert filler
        assert not temporary.exists()
        filler.add(keys[6], b"g")
    assert all(make_store().find(keys))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which tells a process's peak")
def test_the_memory_does_not_grow_with_the_records(start: Start) -> None:
    process = start(
        "import numpy, re\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1000\n"
        "store, size = make_store(), 20_000\n"
        "keys = [make_key(str(number)) for number in range(6000)]\n"
        "before = peak()\n"
        "with store.fill(Silent()) as filler:\n"
        "    for key in keys: filler.add(key, bytes(size))\n"
        "store = make_store()\n"
        "assert all(store.find(keys))\n"
        "rows = numpy.empty((32, size), dtype='uint8')\n"
        "for start in range(0, 5984, 32): store.gather(keys[start : start + 32], rows)\n"
        "for key in keys: bytes(store.read(key))\n"
        "say(peak() - before)\n"
    )
    assert int(hear(process)) < 45  # of 120 MB
