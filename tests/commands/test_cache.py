"""`ftcli cache`: what is kept, and how it is cleared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.caching.images import digest_images
from ftcli.caching.store import Store, make_key
from ftcli.results import Silent
from tests.conftest import Ftcli


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two stores, a download and a part of another, and the digest of one image file."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "1 MB")
    for kind, count, day in (("features", 3, 2), ("pixels", 5, 3)):
        store = Store(kind, {"of": kind}, f"{kind} of a network")
        with store.fill(Silent()) as filler:
            assert filler
            for number in range(count):
                filler.add(make_key(str(number)), bytes(944))
        for path in store.folder.glob("*.chunk"):
            os.utime(path, (day * 86400, day * 86400))
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir()
    for name, day in (("0123456789abcdef-a.pth", 1), ("fedcba9876543210-b.zip.part", 4)):
        (downloads / name).write_bytes(bytes(1234))
        os.utime(downloads / name, (day * 86400, day * 86400))
    (downloads / "fedcba9876543210-b.zip.part.tag").write_text("")
    os.utime(downloads / "fedcba9876543210-b.zip.part.tag", (0, 0))
    os.utime(downloads / "0123456789abcdef-a.pth", (0, 0))
    digest_images(tmp_path, ["cache/downloads/0123456789abcdef-a.pth"])
    os.utime(tmp_path / "cache/images.sqlite", (0, 0))
    return tmp_path / "cache"


FEATURES = Store("features", {"of": "features"}, "").folder.name[:8]
PIXELS = Store("pixels", {"of": "pixels"}, "").folder.name[:8]


def test_it_lists_what_is_kept(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.rstrip() for line in lines[:4]] == [
        "name      kind       records    size  last used, UTC    what",
        "fedcba98  downloads        0  0.0 MB  1970-01-05 00:00  b.zip (a part)",
        f"{PIXELS}  pixels           5  0.0 MB  1970-01-04 00:00  pixels of a network",
        f"{FEATURES}  features         3  0.0 MB  1970-01-03 00:00  features of a network",
    ]
    assert lines[6:] == [
        "",
        f"{cache}: 0.0 MB",
        "features and pixels may take 1.0 MB, then what was used longest ago makes room; FTCLI_CACHE_LIMIT sets this, "
        "FTCLI_CACHE the folder",
        "to clear: ftcli cache clear NAME, or --all",
    ]
    told = ftcli("cache", "--json").json
    assert (told["folder"], told["limit"], told["cleared"], told["freed"]) == (str(cache), 10**6, [], 0)
    assert told["bytes"] == sum(shelf["bytes"] for shelf in told["shelves"])
    assert told["shelves"][1] == {
        "name": PIXELS,
        "kind": "pixels",
        "about": "pixels of a network",
        "records": 5,
        "bytes": 5 * (944 + 36) + 20,
        "used": "1970-01-04T00:00:00+00:00",
    }
    assert {shelf["kind"]: shelf["records"] for shelf in told["shelves"][3:]} == {"downloads": 1, "images": 0}


def test_where_there_is_none_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftcli: Ftcli) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli("cache").out.splitlines() == [
        f"{tmp_path}/none: empty",
        "features and pixels are not kept; FTCLI_CACHE_LIMIT sets this, FTCLI_CACHE the folder",
    ]
    assert not (tmp_path / "none").exists()


def test_it_clears_what_is_named(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache", "clear", FEATURES)
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["name", FEATURES, "cleared:"]
    assert list((cache / "features").iterdir()) == []
    told = ftcli("cache", "--json", "clear", "downloads").json
    assert sorted(shelf["about"] for shelf in told["cleared"]) == ["a.pth", "b.zip (a part)"]
    assert told["freed"] == 2 * 1234
    assert [shelf["kind"] for shelf in told["shelves"]] == ["pixels", "images"]
    assert list((cache / "downloads").iterdir()) == []
    assert len(ftcli("cache", "clear", "--all", "--json").json["cleared"]) == 2
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == []


def test_names_that_are_unknown_clear_nothing(cache: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("cache", "clear", "feature", FEATURES, "zz")
    assert outcome.code == 2
    kinds = {"features", "pixels", "downloads", "images", "choices"}
    names = ", ".join(sorted({*kinds, FEATURES, PIXELS, "01234567", "fedcba98"}))
    assert outcome.faults == [
        f"feature: {cache} holds nothing of that name; did you mean 'features'?",
        f"zz: {cache} holds nothing of that name; known: {names}",
    ]
    assert (cache / "features").exists()
    assert len(ftcli("cache", "--json").json["shelves"]) == 5


def test_it_wants_names_or_all(cache: Path, ftcli: Ftcli) -> None:
    assert ftcli("cache", "clear").faults == [
        "ftcli cache clear: give names that ftcli cache shows, or --all for everything"
    ]
    outcome = ftcli("cache", "clear", "pixels", "--all")
    assert (outcome.code, outcome.faults) == (2, ["--all: clears pixels too; give names or --all"])


def test_what_another_process_writes_to_stays(cache: Path, ftcli: Ftcli) -> None:
    code = (
        "import fcntl, sys; from ftcli.caching.store import Store; from ftcli.results import Silent\n"
        f"part = open({str(cache / 'downloads/fedcba9876543210-b.zip.part')!r}, 'ab')\n"
        "fcntl.lockf(part, fcntl.LOCK_EX)\n"
        "with Store('pixels', {'of': 'pixels'}, '').fill(Silent()): print('filling', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as process:
        assert process.stdout
        assert process.stdout.readline() == b"filling\n"
        named = ftcli("cache", "clear", "pixels", "fedcba98", FEATURES)
        everything = ftcli("cache", "clear", "--all", "--json")
        process.kill()
    assert named.code == 2
    assert sorted(named.faults) == sorted(
        [
            f"{PIXELS}: another ftcli is writing to it (pixels of a network); clear it when that has ended",
            "fedcba98: another ftcli is writing to it (b.zip (a part)); clear it when that has ended",
        ]
    )
    assert everything.code == 0
    assert sorted(everything.err.splitlines()) == sorted(
        [
            f"warning: {PIXELS}: another ftcli is writing to it (pixels of a network); it stays",
            "warning: fedcba98: another ftcli is writing to it (b.zip (a part)); it stays",
        ]
    )
    assert [shelf["kind"] for shelf in everything.json["shelves"]] == ["downloads", "pixels"]
    assert len(ftcli("cache", "clear", "--all", "--json").json["cleared"]) == 2


def test_damage_is_shown_and_cleared(cache: Path, ftcli: Ftcli) -> None:
    (cache / f"features/{Store('features', {'of': 'features'}, '').folder.name}/identity.json").write_text("{")
    (cache / "images.sqlite").write_bytes(b"nonsense" * 100)
    (chunk,) = (cache / "pixels").glob("*/*.chunk")
    os.truncate(chunk, 7)
    told = {shelf["kind"]: (shelf["about"], shelf["records"]) for shelf in ftcli("cache", "--json").json["shelves"]}
    assert told["features"] == ("unknown", 3)
    assert told["images"] == ("digests of image files", 0)
    assert told["pixels"] == ("pixels of a network", 0)
    assert ftcli("cache", "clear", "--all").code == 0
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_listing_needs_no_torch(cache: Path) -> None:
    code = (
        "import sys; from ftcli.cli import main; sys.argv = ['ftcli', 'cache']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
