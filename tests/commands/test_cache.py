"""Tests of `ftcli cache`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.caching.file_hashes import hash_files
from ftcli.caching.store import Store, make_key
from ftcli.results import NullReporter, ProgressTask
from tests.conftest import Ftcli


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two stores, a complete and an incomplete download, and the hash of one image file."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1 MB")
    for kind, count, day in (("features", 3, 2), ("pixels", 5, 3)):
        store = Store(kind, {"of": kind}, f"{kind} of a network")
        with store.writer(ProgressTask("test", NullReporter())) as writer:
            for number in range(count):
                writer.add(make_key(str(number)), bytes(944))
        for path in store.folder.glob("*.sqlite"):
            os.utime(path, (day * 86400, day * 86400))
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir()
    for name, day in (("0123456789abcdef-a.pth", 1), ("fedcba9876543210-b.zip.part", 4)):
        (downloads / name).write_bytes(bytes(1234))
        os.utime(downloads / name, (day * 86400, day * 86400))
    (downloads / "fedcba9876543210-b.zip.part.tag").write_text("")
    os.utime(downloads / "fedcba9876543210-b.zip.part.tag", (0, 0))
    os.utime(downloads / "0123456789abcdef-a.pth", (0, 0))
    hash_files(tmp_path, ["cache/downloads/0123456789abcdef-a.pth"])
    os.utime(tmp_path / "cache/images.sqlite", (0, 0))
    return tmp_path / "cache"


FEATURES_ENTRY = Store("features", {"of": "features"}, "").folder.name[:8]
PIXELS_ENTRY = Store("pixels", {"of": "pixels"}, "").folder.name[:8]


def test_cache_lists_entries(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.rstrip() for line in lines[:4]] == [
        "name      kind       records    size  last used, UTC    content",
        "fedcba98  downloads        0  0.0 MB  1970-01-05 00:00  b.zip (incomplete)",
        f"{PIXELS_ENTRY}  pixels           5  0.1 MB  1970-01-04 00:00  pixels of a network",
        f"{FEATURES_ENTRY}  features         3  0.1 MB  1970-01-03 00:00  features of a network",
    ]
    assert lines[6:] == [
        "",
        f"{cache}: 0.2 MB",
        "limit for features and pixels: 1.0 MB; the least recently used are evicted first (FTCLI_CACHE_LIMIT sets the "
        "limit, FTCLI_CACHE the folder)",
        "to clear: ftcli cache clear NAME, or --all",
    ]
    result = ftcli("cache", "--json").json
    assert (result["folder"], result["limit"], result["cleared"], result["freed"]) == (str(cache), 10**6, [], 0)
    assert result["bytes"] == sum(entry["bytes"] for entry in result["shelves"])
    assert result["shelves"][1] == {
        "name": PIXELS_ENTRY,
        "kind": "pixels",
        "about": "pixels of a network",
        "records": 5,
        "bytes": 3 * 32_768,
        "used": "1970-01-04T00:00:00+00:00",
    }
    assert {entry["kind"]: entry["records"] for entry in result["shelves"][3:]} == {"downloads": 1, "images": 0}


def test_cache_listing_creates_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftcli: Ftcli) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli("cache").out.splitlines() == [
        f"{tmp_path}/none: empty",
        "limit for features and pixels: 0, so they are not cached (FTCLI_CACHE_LIMIT sets the limit, FTCLI_CACHE the "
        "folder)",
    ]
    assert not (tmp_path / "none").exists()


def test_cache_clear_removes_named_entries(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache", "clear", FEATURES_ENTRY)
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["name", FEATURES_ENTRY, "cleared:"]
    assert list((cache / "features").iterdir()) == []
    result = ftcli("cache", "--json", "clear", "downloads").json
    assert sorted(entry["about"] for entry in result["cleared"]) == ["a.pth", "b.zip (incomplete)"]
    assert result["freed"] == 2 * 1234
    assert [entry["kind"] for entry in result["shelves"]] == ["pixels", "images"]
    assert list((cache / "downloads").iterdir()) == []
    assert len(ftcli("cache", "clear", "--all", "--json").json["cleared"]) == 2
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == []


def test_cache_clear_with_unknown_name_removes_nothing(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache", "clear", "feature", FEATURES_ENTRY, "zz")
    assert outcome.code == 2
    kinds = {"features", "pixels", "downloads", "images", "choices"}
    names = ", ".join(sorted({*kinds, FEATURES_ENTRY, PIXELS_ENTRY, "01234567", "fedcba98"}))
    assert outcome.errors == [
        f"feature: {cache} has no entry or kind of this name; did you mean 'features'?",
        f"zz: {cache} has no entry or kind of this name; known: {names}",
    ]
    assert (cache / "features").exists()
    assert len(ftcli("cache", "--json").json["shelves"]) == 5


def test_cache_clear_requires_names_or_all(cache: Path, ftcli: Ftcli) -> None:
    assert ftcli("cache", "clear").errors == [
        "ftcli cache clear: no names given; add names that ftcli cache lists, or --all"
    ]
    outcome = ftcli("cache", "clear", "pixels", "--all")
    assert (outcome.code, outcome.errors) == (
        2,
        ["--all: cannot be combined with names such as pixels; remove one of them"],
    )


def test_cache_clear_skips_entries_locked_by_another_process(cache: Path, ftcli: Ftcli) -> None:
    code = (
        "import fcntl, sys; from ftcli.caching.store import Store\n"
        "from ftcli.results import NullReporter, ProgressTask\n"
        f"file = open({str(cache / 'downloads/fedcba9876543210-b.zip.part')!r}, 'ab')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "with Store('pixels', {'of': 'pixels'}, '').writer(ProgressTask('', NullReporter())):\n"
        "    print('writing', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as process:
        assert process.stdout
        assert process.stdout.readline() == b"writing\n"
        named = ftcli("cache", "clear", "pixels", "fedcba98", FEATURES_ENTRY)
        everything = ftcli("cache", "clear", "--all", "--json")
        process.kill()
    assert named.code == 2
    assert sorted(named.errors) == sorted(
        [
            f"{PIXELS_ENTRY}: another ftcli is writing to it (pixels of a network); try again when it has ended",
            "fedcba98: another ftcli is writing to it (b.zip (incomplete)); try again when it has ended",
        ]
    )
    assert everything.code == 0
    assert sorted(everything.err.splitlines()) == sorted(
        [
            f"warning: {PIXELS_ENTRY}: another ftcli is writing to it (pixels of a network); it was not removed",
            "warning: fedcba98: another ftcli is writing to it (b.zip (incomplete)); it was not removed",
        ]
    )
    assert [entry["kind"] for entry in everything.json["shelves"]] == ["downloads", "pixels"]
    assert len(ftcli("cache", "clear", "--all", "--json").json["cleared"]) == 2


def test_cache_lists_and_clears_corrupt_entries(cache: Path, ftcli: Ftcli) -> None:
    (cache / f"features/{Store('features', {'of': 'features'}, '').folder.name}/identity.json").write_text("{")
    (cache / "images.sqlite").write_bytes(b"nonsense" * 100)
    (path,) = (cache / "pixels").glob("*/*.sqlite")
    os.truncate(path, 7)
    result = {entry["kind"]: (entry["about"], entry["records"]) for entry in ftcli("cache", "--json").json["shelves"]}
    assert result["features"] == ("unknown", 3)
    assert result["images"] == ("digests of image files", 0)
    assert result["pixels"] == ("pixels of a network", 0)
    assert ftcli("cache", "clear", "--all").code == 0
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_cache_listing_imports_no_torch(cache: Path) -> None:
    code = (
        "import sys; from ftcli.cli import main; sys.argv = ['ftcli', 'cache']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
