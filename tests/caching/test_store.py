"""Stores return intact records only, after kills, corruption and concurrent writes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ftcli.caching import store as store_module
from ftcli.caching.eviction import evict
from ftcli.caching.listing import list_cache
from ftcli.caching.record_file import RecordFile
from ftcli.caching.store import Store, StoreWriter, make_key
from ftcli.errors import RunError, StopRequestedError
from ftcli.results import NullReporter, ProgressTask
from tests.caching.conftest import TASK, StartProcess, read_line
from tests.conftest import LibraryLog

ROWS = np.random.default_rng(0).normal(size=(300, 25)).astype(np.float32)
KEYS = [make_key("image", str(number)) for number in range(len(ROWS))]


def make_store(about: str = "features of n") -> Store:
    return Store("features", {"network": "n"}, about)


def write_rows(indices: Sequence[int], store: Store | None = None) -> Store:
    store = store or make_store()
    with store.writer(TASK) as writer:
        add_rows(writer, indices)
    return store


def add_rows(writer: StoreWriter, indices: Iterable[int]) -> None:
    for index in indices:
        writer.add(KEYS[index], ROWS[index].data)


def read_rows(store: Store, indices: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rows = np.empty((len(indices), ROWS.shape[1]), dtype=np.float32)
    store.gather([KEYS[index] for index in indices], rows.view(np.uint8))
    return rows


def list_files(store: Store) -> list[Path]:
    return sorted(store.folder.glob("*.sqlite"))


def flip_bit(path: Path, content: bytes) -> None:
    """Change a bit of the content of a record."""
    data = bytearray(path.read_bytes())
    assert data.count(content) == 1
    data[data.index(content) + 50] ^= 1
    path.write_bytes(data)


def test_make_key_separates_parts() -> None:
    lists: list[tuple[str | bytes, ...]] = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), (b"\0",), (), ("\udcff",)]
    keys = {make_key(*parts) for parts in lists}
    assert len(keys) == len(lists)
    assert {len(key) for key in keys} == {16}
    assert make_key("é") == make_key("é".encode())


def test_gather_returns_records_in_requested_order(cache: Path) -> None:
    store = write_rows(range(200))
    assert store.contains(KEYS) == [True] * 200 + [False] * 100
    indices = [7, 199, 0, 7, 3]
    assert (read_rows(store, indices) == ROWS[indices]).all()
    assert make_store().read(KEYS[5]) == ROWS[5].tobytes()
    assert store.contains([]) == []
    store.gather([], np.empty((0, 4), dtype=np.uint8))
    with pytest.raises(KeyError, match=KEYS[250].hex()):
        read_rows(store, [3, 250])
    with pytest.raises(KeyError, match=KEYS[250].hex()):
        store.read(KEYS[250])
    with pytest.raises(ValueError, match="a record has 100 bytes, not 99"):
        store.gather(KEYS[:2], np.empty((2, 99), dtype=np.uint8))


def test_store_accepts_keys_ending_in_zeros() -> None:
    keys = [bytes([1, *[0] * 15]), bytes(16), bytes([0] * 14 + [1, 0]), bytes([*[0] * 15, 1])]
    store = make_store()
    with store.writer(TASK) as writer:
        for number, key in enumerate(keys):
            writer.add(key, bytes([number]) * 40)
    assert make_store().contains([*keys, bytes([2, *[0] * 15])]) == [True] * 4 + [False]
    rows = np.empty((4, 40), dtype=np.uint8)
    make_store().gather(keys, rows)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]


def test_store_retains_records_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MEMORY_BYTES", 250)
    store = write_rows(range(10))
    assert (read_rows(store, [4, 5, 6]) == ROWS[[4, 5, 6]]).all()
    for record_file in store._files:
        record_file._connection.close()
    assert len(store._in_memory) == 2
    for key, content in store._in_memory.items():
        assert store.read(key) == content == ROWS[KEYS.index(key)].tobytes()


def test_store_folder_depends_on_identity(cache: Path) -> None:
    store = Store("features", {"a": [1, None], "b": "é"}, "features of é")
    assert store.folder == Store("features", {"b": "é", "a": (1, None)}, "another description").folder
    assert store.folder != Store("features", {"a": [1, None], "b": "e"}, "features of é").folder
    assert store.contains(KEYS[:1]) == [False]
    assert not cache.exists()
    write_rows([0], store)
    assert json.loads((store.folder / "identity.json").read_text()) == {
        "about": "features of é",
        "identity": {"a": [1, None], "b": "é"},
    }
    assert store.folder.parent == cache / "features"
    assert len(store.folder.name) == 32


def test_store_writer_commits_after_bytes_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = make_store(), make_store()
    monkeypatch.setattr(store_module, "COMMIT_BYTES", 10 * 100)
    with store.writer(TASK) as writer:
        add_rows(writer, range(25))
        assert other.contains(KEYS[:25]) == [True] * 20 + [False] * 5
        assert store.contains(KEYS[:25]) == [True] * 20 + [False] * 5
        monkeypatch.setattr(store_module, "COMMIT_SECONDS", 0.0)
        add_rows(writer, [25])
        assert other.contains(KEYS[:26]) == [True] * 26
    (path,) = list_files(store)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([".lock", "identity.json", path.name])


def test_store_writer_saves_complete_records_on_error() -> None:
    store = make_store()
    with pytest.raises(ZeroDivisionError), store.writer(TASK) as writer:
        add_rows(writer, (number // number - 1 + index for index, number in enumerate((1, 1, 0))))
    assert make_store().contains(KEYS[:3]) == [True, True, False]
    with store.writer(TASK):
        pass
    assert len(list_files(store)) == 1


def test_store_starts_new_file_when_newest_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_FILE_BYTES", 98_304)
    reader = write_rows([0])
    assert reader.contains(KEYS[:1]) == [True]
    for start in range(0, 300, 100):
        write_rows(range(start, start + 100))
    assert len(list_files(reader)) == 4
    for store in (reader, make_store()):
        assert all(store.contains(KEYS))
        assert (read_rows(store, range(300)) == ROWS).all()


def test_store_limits_file_size_in_small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "700 kB")
    for index in range(5):
        store = write_rows(range(60 * index, 60 * index + 60))
    assert len(list_files(store)) == 5


def test_store_removes_file_with_corrupt_record() -> None:
    store = write_rows(range(10))
    (path,) = list_files(store)
    flip_bit(path, ROWS[3].tobytes())
    reader = make_store()
    with pytest.raises(KeyError):
        read_rows(reader, [3])
    assert reader.contains(KEYS[:10]) == [False] * 10
    write_rows(range(10), reader)
    assert not path.exists()
    for store in (reader, make_store()):
        assert all(store.contains(KEYS[:10]))
        assert (read_rows(store, range(10)) == ROWS[:10]).all()


def test_store_prefers_intact_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_FILE_BYTES", 1)
    write_rows([1, 2])
    store = write_rows([2, 3])
    flip_bit(list_files(store)[-1], ROWS[2].tobytes())
    reader = make_store()
    assert reader.contains(KEYS[1:4]) == [True, True, False]
    assert (read_rows(reader, [2]) == ROWS[[2]]).all()


@pytest.mark.parametrize("start", range(32_768, 131_072, 5000))
def test_store_recovers_from_zeroed_bytes(start: int) -> None:
    store = write_rows(range(300))
    (path,) = list_files(store)
    data = bytearray(path.read_bytes())
    data[start : start + 3000] = bytes(len(data[start : start + 3000]))
    path.write_bytes(data)
    reader = make_store()
    write_rows([index for index, is_stored in enumerate(reader.contains(KEYS)) if not is_stored], reader)
    for store in (reader, make_store()):
        assert all(store.contains(KEYS))
        assert (read_rows(store, range(300)) == ROWS).all()


@pytest.mark.parametrize(
    "statement",
    ["DROP TABLE records", "ALTER TABLE records DROP COLUMN crc", "UPDATE records SET content = 'text'"],
)
def test_store_removes_file_with_unexpected_schema(statement: str) -> None:
    (path,) = list_files(write_rows(range(10)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    store = make_store()
    assert store.contains(KEYS[:10]) == [False] * 10
    write_rows([3], store)
    assert not path.exists()
    assert store.contains(KEYS[:10]) == [index == 3 for index in range(10)]


def test_store_ignores_other_file_types() -> None:
    folder = write_rows([0]).folder
    (folder / "a.sqlite").mkdir()
    os.mkfifo(folder / "b.sqlite")
    assert write_rows([1]).contains(KEYS[:3]) == [True, True, False]
    assert [entry.records for entry in list_cache().shelves if entry.kind == "features"] == [2]
    assert evict(0)


@pytest.mark.parametrize("record_size", [40, 400, 2048, 4000, 5120, 8192, 16_384, 30_000, 62_720, 200_704])
def test_record_file_wastes_little_space(tmp_path: Path, record_size: int) -> None:
    num_records = 4_000_000 // record_size
    record_file = RecordFile.create(tmp_path, record_size)
    record_file.write([(make_key(str(number)), 0, bytes(record_size)) for number in range(num_records)])
    assert record_file.path.stat().st_size < num_records * (1.15 * record_size + 150) + 200_000


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"nonsense" * 2 + path.read_bytes()[16:])


def overwrite_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:32_768] + b"\xff" * 65_536)


@pytest.mark.parametrize(
    "corrupt",
    [
        overwrite_header,
        overwrite_pages,
        *(lambda path, size=size: os.truncate(path, size) for size in (0, 5, 500, 20_000)),
    ],
    ids=["header", "pages", "0 bytes", "5 bytes", "500 bytes", "20 kB"],
)
def test_store_removes_corrupt_file(corrupt: Callable[[Path], None]) -> None:
    store = write_rows(range(10))
    (path,) = list_files(store)
    corrupt(path)
    reader = make_store()
    assert reader.contains(KEYS[:10]) == [False] * 10
    with pytest.raises(KeyError):
        read_rows(reader, [1])
    write_rows(range(5))
    assert path not in list_files(store)
    for store in (reader, make_store()):
        assert store.contains(KEYS[:10]) == [True] * 5 + [False] * 5


def test_store_writer_reports_corruption_found_by_writing() -> None:
    (path,) = list_files(write_rows(range(10)))
    data = bytearray(path.read_bytes())
    data[32_768:65_536] = b"\xff" * 32_768  # the page of the records; the key index is intact
    path.write_bytes(data)
    with pytest.raises(RunError) as caught:
        write_rows([20])
    assert str(caught.value) == f"{path}: is corrupt and was removed; run the command again"
    assert make_store().contains(KEYS[:10]) == [False] * 10


def test_store_reads_records_of_removed_file() -> None:
    reader = write_rows(range(10))
    assert all(reader.contains(KEYS[:10]))
    for path in list_files(reader):
        path.unlink()
    write_rows([20], reader)
    assert reader.contains([KEYS[0], KEYS[20], KEYS[21]]) == [True, True, False]
    assert (read_rows(reader, [9, 20]) == ROWS[[9, 20]]).all()
    assert make_store().contains(KEYS[:1]) == [False]


def test_store_reopens_files_in_forked_process() -> None:
    store = write_rows(range(10))
    assert all(store.contains(KEYS[:10]))
    parent_files = list(store._files)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def read_in_child() -> None:
        row = np.frombuffer(store.read(KEYS[4]), dtype=np.float32)
        sender.send(((row == ROWS[4]).all(), [file in parent_files for file in store._files]))

    process = context.Process(target=read_in_child)
    process.start()
    assert receiver.recv() == (True, [False])
    process.join()
    assert (read_rows(store, [4]) == ROWS[[4]]).all()


def test_store_writer_reports_full_disk() -> None:
    store = write_rows([0])
    assert store.contains(KEYS[:1]) == [True]
    store._files[0]._connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(RunError) as caught, store.writer(TASK) as writer:
        add_rows(writer, range(1, 300))
    assert str(caught.value).startswith(f"{list_files(store)[0]}: the disk is full: 0.0 MB needed, ")
    assert make_store().contains(KEYS) == [True] + [False] * 299


def test_store_reports_unusable_folder(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("")
    store = make_store()
    with pytest.raises(RunError) as caught, store.writer(TASK):
        pass
    assert str(caught.value) == (
        f"{store.folder}: cannot be written (Not a directory); check the folder and its permissions"
    )
    with pytest.raises(RunError) as caught:
        store.contains(KEYS[:1])
    assert str(caught.value) == (
        f"{store.folder}: cannot be read (Not a directory); check its permissions, or set FTCLI_CACHE to "
        "another directory"
    )


def test_store_writer_waits_for_other_process(start: StartProcess, log: LibraryLog) -> None:
    first = start(
        "with make_store().writer(TASK) as writer:\n"
        "    add(writer, ['a', 'b']); say('writing'); sys.stdin.readline(); add(writer, ['c'])\n"
    )
    assert read_line(first) == "writing"
    keys = [make_key(name) for name in "abc"]
    store, num_calls = make_store(), 0

    def stop() -> bool:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            assert first.stdin
            first.stdin.write("\n")
            first.stdin.flush()
        return False

    with store.writer(ProgressTask("test", NullReporter(), stop)):
        assert store.contains(keys) == [True] * 3
    assert num_calls >= 3
    assert log.messages == [
        f"features of n: another ftcli (process {first.pid}) is computing this; waiting for it",
    ]
    assert bytes(store.read(keys[2])) == b"c" * 100


def test_store_writer_stops_waiting(start: StartProcess) -> None:
    first = start("with make_store().writer(TASK): say('writing'); sys.stdin.readline()\n")
    assert read_line(first) == "writing"
    task = ProgressTask("head", NullReporter(), lambda: True)
    with pytest.raises(StopRequestedError, match="head"), make_store().writer(task):
        pass


def test_store_writer_is_exclusive_within_process(log: LibraryLog) -> None:
    is_done = threading.Event()
    store = make_store()

    def add_more() -> None:
        other = make_store()
        with other.writer(TASK):
            if all(other.contains(KEYS[:1])):
                is_done.set()

    thread = threading.Thread(target=add_more)
    with store.writer(TASK) as writer:
        thread.start()
        time.sleep(0.3)
        add_rows(writer, [0])
        assert not is_done.is_set()
    thread.join(10)
    assert is_done.is_set()
    assert len(log.messages) == 1


def test_store_writer_loses_only_uncommitted_records_when_killed(start: StartProcess) -> None:
    process = start(
        "store_module.COMMIT_BYTES = 300\n"
        "with make_store().writer(TASK) as writer:\n"
        "    add(writer, 'abcdefg'); say('added'); sys.stdin.readline()\n"
    )
    assert read_line(process) == "added"
    store = make_store()
    process.kill()
    process.wait()
    keys = [make_key(name) for name in "abcdefg"]
    assert store.contains(keys) == [True] * 6 + [False]
    assert [bytes(store.read(key)) for key in keys[:6]] == [name.encode() * 100 for name in "abcdef"]
    with store.writer(TASK) as writer:
        writer.add(keys[6], b"g")
    assert all(make_store().contains(keys))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak memory")
def test_store_memory_does_not_grow_with_records(start: StartProcess) -> None:
    process = start(
        "import numpy, re\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1000\n"
        "store, size = make_store(), 20_000\n"
        "keys = [make_key(str(number)) for number in range(6000)]\n"
        "before = peak()\n"
        "with store.writer(TASK) as writer:\n"
        "    for key in keys: writer.add(key, bytes(size))\n"
        "store = make_store()\n"
        "assert all(store.contains(keys))\n"
        "rows = numpy.empty((32, size), dtype='uint8')\n"
        "for start in range(0, 5984, 32): store.gather(keys[start : start + 32], rows)\n"
        "for key in keys: bytes(store.read(key))\n"
        "say(peak() - before)\n"
    )
    assert int(read_line(process)) < 70  # of 120 MB
