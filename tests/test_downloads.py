"""Downloads: once, resumed, checked on every use, and told in one sentence where they fail."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from urllib.request import Request

import pytest

from ftcli import __version__
from ftcli.downloads import fetch_file, is_offline, transfer
from ftcli.errors import DataError, RunError
from ftcli.results import Progress, Silent
from tests.server import Answer, Server, run_server

FILE = random.Random(0).randbytes(3_000_000)
OTHER = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(FILE).hexdigest()
SHA1 = hashlib.sha1(FILE).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # for 127.0.0.1 alone, trusted by nobody


class Listener(Silent):
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.heard: list[Progress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def advance(self, progress: Progress) -> None:
        self.heard.append(progress)


def get(url: str, digest: str = f"sha256:{SHA256}", target: Path | None = None) -> Path:
    return fetch_file(url, digest, "here", Silent(), DataError, target)


def fail(url: str, digest: str = f"sha256:{SHA256}", target: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        get(url, digest, target)
    return str(caught.value)


def place(tmp_path: Path, name: str = "a.zip") -> Path:
    return tmp_path / f"cache/downloads/{SHA256[:16]}-{name}"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_once(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    listener = Listener()
    for _ in range(2):
        path = fetch_file(url, f"sha256:{SHA256}", "here", listener, DataError)
        assert path == place(tmp_path)
        assert path.read_bytes() == FILE
    (seen,) = server.requests
    assert (seen.method, seen.headers["Accept-Encoding"]) == ("GET", "identity")
    assert seen.headers["User-Agent"] == f"ftcli/{__version__}"
    assert list_names(path.parent) == [path.name]
    assert listener.said == [f"downloading {url} to {path}"]
    last = listener.heard[-1]
    assert (last.task, last.done, last.total, last.unit) == (f"download {path.name}", 3_000_000, 3_000_000, "bytes")
    assert last.rate is not None


@pytest.mark.parametrize(
    "digest", [f"sha1:{SHA1}", f"md5:{hashlib.md5(FILE).hexdigest()}", f"sha256:{SHA256[:8].upper()}"]
)
def test_other_digests_and_beginnings_of_them_will_do(tmp_path: Path, server: Server, digest: str) -> None:
    url = server.serve("/a.zip", FILE)
    target = tmp_path / "deep/er/file"
    assert get(url, digest, target) == target
    assert target.read_bytes() == FILE
    assert get(url, digest, target) == target
    assert server.count() == 1


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ({"FTCLI_CACHE": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own"),
        ({"FTCLI_CACHE": "", "XDG_CACHE_HOME": "{}/xdg"}, "xdg/ftcli"),
        ({"FTCLI_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{}/home"}, "home/.cache/ftcli"),
    ],
)
def test_where_the_cache_is(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str], expected: str
) -> None:
    for name, value in set_to.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    url = server.serve("/x/a%20b%2Fc.zip", FILE)
    assert get(url + "?token=1") == tmp_path / expected / "downloads" / f"{SHA256[:16]}-c.zip"


def test_what_was_cut_goes_on_where_it_ended(tmp_path: Path, server: Server) -> None:
    cut = [Answer(FILE, cut=length) for length in (500_000, 400_000, 1_000_000)]
    url = server.serve("/a.zip", *cut, Answer(FILE, cut=1000, reset=True), Answer(FILE))
    listener = Listener()
    assert fetch_file(url, f"sha256:{SHA256}", "here", listener, DataError).read_bytes() == FILE
    ranges = [seen.range for seen in server.requests]
    assert ranges[:4] == [None, "bytes=500000-", "bytes=900000-", "bytes=1900000-"]
    assert [seen.headers["If-Range"] for seen in server.requests] == [None, '"1"', '"1"', '"1"', '"1"']
    assert listener.said[1] == f"{url}: the connection ended at 0.5 MB; trying again"
    assert list_names(place(tmp_path).parent) == [place(tmp_path).name]


def test_five_tries_without_a_new_byte_are_enough(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Answer(FILE, cut=1000), Answer(FILE, cut=0))
    assert fail(url) == (
        f"here: {url} cannot be downloaded (the connection ended); download it where that is possible and put it at "
        f"{place(tmp_path)}"
    )
    assert server.count() == 6
    server.serve("/a.zip", FILE)
    listener = Listener()
    assert fetch_file(url, f"sha256:{SHA256}", "here", listener, DataError).read_bytes() == FILE
    assert listener.said == [f"downloading {url} to {place(tmp_path)}, from 0.0 MB on"]
    assert server.requests[-1].range == "bytes=1000-"


def test_a_later_call_goes_on_after_a_kill(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Answer(FILE, cut=2_000_000, silence=60), Answer(FILE))
    with start(url) as process:
        wait_for(place(tmp_path, "a.zip.part"), 2_000_000)
        process.send_signal(signal.SIGKILL)
    assert not place(tmp_path).exists()
    assert get(url).read_bytes() == FILE
    assert [(seen.range, seen.headers["If-Range"]) for seen in server.requests] == [
        (None, None),
        ("bytes=2000000-", '"1"'),
    ]


def test_a_part_that_only_lacks_its_name_is_not_downloaded_again(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path, "a.zip.part").write_bytes(FILE)
    assert get(url).read_bytes() == FILE
    assert [seen.range for seen in server.requests] == ["bytes=3000000-"]


def test_one_process_downloads_and_the_others_wait(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Answer(FILE, cut=1_000_000, silence=60))
    with start(url) as first:
        wait_for(place(tmp_path, "a.zip.part"), 1_000_000)
        with start(url) as second:
            assert second.stdout is not None
            waiting = "another ftcli is downloading " + place(tmp_path).name + "; waiting for it\n"
            assert second.stdout.readline() == waiting
            server.ended.set()
            server.serve("/a.zip", FILE)
            assert first.wait(20) == second.wait(20) == 0
    assert get(url).read_bytes() == FILE
    # The rest did not follow, since the server ends its silences by ending: so the first asked once more.
    assert [seen.range for seen in server.requests] == [None, "bytes=1000000-"]
    assert list_names(place(tmp_path).parent) == [place(tmp_path).name]


def test_who_waited_for_a_download_that_came_out_wrong_begins_anew(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Answer(OTHER, cut=1_000_000, silence=60), OTHER, FILE)
    with start(url) as first:
        wait_for(place(tmp_path, "a.zip.part"), 1_000_000)
        with start(url) as second:
            assert second.stdout is not None
            assert "waiting for it" in second.stdout.readline()
            server.ended.set()
            assert (first.wait(20), second.wait(20)) == (1, 0)
    assert place(tmp_path).read_bytes() == FILE
    assert [seen.range for seen in server.requests] == [None, "bytes=1000000-", None]


def start(url: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from ftcli.console import Terminal; from ftcli.downloads import fetch_file\n"
        "from ftcli.errors import DataError\n"
        "fetch_file(*sys.argv[1:], 'here', Terminal(sys.stdout), DataError)"
    )
    command = [sys.executable, "-u", "-c", code, url, f"sha256:{SHA256}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(path: Path, size: int) -> None:
    until = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.02)


def test_a_server_without_parts_begins_anew(server: Server) -> None:
    url = server.serve("/a.zip", Answer(FILE, cut=1_000_000), Answer(FILE, ranges=False))
    assert get(url).read_bytes() == FILE
    assert server.count() == 2


def test_what_comes_again_is_no_progress(server: Server) -> None:
    shorter = [Answer(FILE, cut=length, ranges=False) for length in (2000, 1000, 1500, 1000, 1500, 1000)]
    assert "(the connection ended)" in fail(server.serve("/a.zip", *shorter, Answer(FILE)))
    assert server.count() == 6


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_in_between_begins_anew(server: Server, if_range: bool) -> None:
    url = server.serve("/a.zip", Answer(OTHER, cut=1_000_000), Answer(FILE, etag='"2"', if_range=if_range))
    assert get(url).read_bytes() == FILE


def test_a_weak_tag_is_no_condition_but_a_date_is(server: Server) -> None:
    date = "Sun, 01 Mar 2026 10:00:00 GMT"
    weak = Answer(FILE, etag='W/"1"', headers={"Last-Modified": date}, cut=1_000_000, if_range=False)
    url = server.serve("/a.zip", weak, Answer(FILE, etag='W/"1"', headers={"Last-Modified": date}, if_range=False))
    assert get(url).read_bytes() == FILE
    assert server.requests[-1].headers["If-Range"] == date


def test_a_part_longer_than_the_file_begins_anew(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path, "a.zip.part").write_bytes(FILE + b"more")
    assert get(url).read_bytes() == FILE
    assert [seen.range for seen in server.requests] == ["bytes=3000004-", None]


def test_lengths_that_are_not_true(tmp_path: Path, server: Server) -> None:
    assert get(server.serve("/long.zip", Answer(FILE, declared=3_000_100))).read_bytes() == FILE
    assert get(server.serve("/none.zip", Answer(FILE, declared=-1))).read_bytes() == FILE
    url = server.serve("/short.zip", Answer(FILE, declared=2_999_900))
    found = hashlib.sha256(FILE[:2_999_900]).hexdigest()
    assert fail(url) == (
        f"here: what came from {url} is not the file that was asked for: its SHA-256 should begin with {SHA256} and "
        f"is {found}; try again, or on another network"
    )
    url = server.serve("/always.zip", Answer(FILE, declared=3_000_100, ranges=False))
    assert "(the connection ended)" in fail(url)
    assert server.count("/always.zip") == 6
    url = server.serve("/endless.zip", Answer(FILE, declared=10**12))
    assert "(it would be 1000.0 GB long)" in fail(url)


def test_an_endless_answer_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.downloads.transfer._MOST", 2_000_000)
    assert "(it is longer than 2.0 MB)" in fail(server.serve("/a.zip", Answer(FILE, declared=-1)))


def test_what_is_another_file_is_not_kept(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", OTHER)
    assert fail(url, f"sha1:{SHA1}") == (
        f"here: what came from {url} is not the file that was asked for: its SHA-1 should begin with {SHA1} and is "
        f"{hashlib.sha1(OTHER).hexdigest()}; try again, or on another network"
    )
    assert list_names(tmp_path / "cache/downloads") == []


def test_a_file_that_was_damaged_is_downloaded_anew(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    path = get(url)
    path.write_bytes(OTHER)
    listener = Listener()
    assert fetch_file(url, f"sha256:{SHA256}", "here", listener, DataError).read_bytes() == FILE
    assert listener.warned == [
        f"here: {path} is not the file at {url}: its SHA-256 should begin with {SHA256} and is {OTHER_SHA256}; it is "
        "downloaded anew"
    ]
    path.write_bytes(OTHER)
    server.serve("/a.zip", Answer(status=404))
    fail(url)
    assert path.read_bytes() == OTHER


def test_offline_nothing_is_asked_for(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve("/a.zip", FILE)
    for value, expected in (("1", True), ("Yes", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("FTCLI_OFFLINE", value)
        assert is_offline() == expected
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    assert fail(url) == (
        f"here: {url} is needed and FTCLI_OFFLINE is set; download it where that is possible and put it at "
        f"{place(tmp_path)}, or unset FTCLI_OFFLINE"
    )
    assert not (tmp_path / "cache").exists()
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path).write_bytes(OTHER)
    assert fail(url) == (
        f"here: {place(tmp_path)} is not the file at {url}: its SHA-256 should begin with {SHA256} and is "
        f"{OTHER_SHA256}; FTCLI_OFFLINE is set: download it where that is possible and put it there, or unset "
        "FTCLI_OFFLINE"
    )
    place(tmp_path).write_bytes(FILE)
    assert get(url) == place(tmp_path)
    assert server.count() == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x.org/a",
        "file:///etc/passwd",
        "http:///a",
        "https://x.org/a b",
        "http://ü.de/",
        "http://[::1/a",
        "http://x.org:a/",
    ],
)
def test_what_is_no_address(url: str) -> None:
    assert fail(url) == f"here: {url!r} is no address of a file; give one that begins with https:// or http://"


def test_redirects_are_followed_with_the_part_that_is_asked_for(server: Server) -> None:
    server.serve("/c", Answer(FILE, cut=1_000_000), Answer(FILE))
    server.serve("/b", Answer(status=301, location="/c", etag=None))
    url = server.serve("/a.zip", Answer(status=302, location=server.address + "/b", etag=None))
    assert get(url).read_bytes() == FILE
    assert [seen.range for seen in server.requests if seen.path == "/c"] == [None, "bytes=1000000-"]


def test_redirects_that_lead_nowhere(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Answer(status=302, location="/a.zip"))
    remedy = f"download it where that is possible and put it at {place(tmp_path)}"
    assert fail(url) == f"here: {url} cannot be downloaded (its redirects lead nowhere); {remedy}"
    server.serve("/a.zip", Answer(status=302, location="file:///etc/passwd"))
    assert fail(url) == f"here: {url} cannot be downloaded (its redirects lead nowhere); {remedy}"


@pytest.mark.parametrize(
    ("answer", "reason", "remedy", "requests"),
    [
        (Answer(status=404), "HTTP 404 Not Found", "check the address, or get it elsewhere", 1),
        (Answer(status=403), "HTTP 403 Forbidden", "download it where that is possible", 1),
        (Answer(status=500), "HTTP 500 Internal Server Error", "download it where that is possible", 5),
        (
            Answer(status=503, headers={"Retry-After": "3600"}),
            "HTTP 503 Service Unavailable",
            "download it where that is possible",
            1,
        ),
    ],
)
def test_a_server_that_refuses(
    tmp_path: Path, server: Server, answer: Answer, reason: str, remedy: str, requests: int
) -> None:
    url = server.serve("/a.zip", answer)
    assert fail(url) == f"here: {url} cannot be downloaded ({reason}); {remedy} and put it at {place(tmp_path)}"
    assert server.count() == requests
    assert list_names(tmp_path / "cache/downloads") == []


def test_a_server_that_is_busy_is_asked_again_when_it_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("ftcli.downloads.transfer.PAUSES", (0.5, 1.0))
    monkeypatch.setattr("ftcli.downloads.transfer.time.sleep", pauses.append)
    busy = [Answer(status=500), Answer(status=429, headers={"Retry-After": "7"}), Answer(FILE, cut=9), Answer(FILE)]
    assert get(server.serve("/a.zip", *busy)).read_bytes() == FILE
    assert pauses == [0.5, 7.0, 0.5]


def test_a_server_that_falls_silent(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.downloads.transfer.WAIT", 0.2)
    url = server.serve("/a.zip", Answer(FILE, cut=1_000_000, silence=60), Answer(FILE))
    assert get(url).read_bytes() == FILE
    assert server.requests[-1].range == "bytes=1000000-"
    url = server.serve("/b.zip", Answer(FILE, silence=60))
    assert "(no answer for 0.2 s)" in fail(url)


def test_servers_that_cannot_be_reached(tmp_path: Path, server: Server) -> None:
    remedy = f"download it where that is possible and put it at {place(tmp_path)}"
    with run_server() as gone:
        url = gone.address + "/a.zip"
    assert fail(url) == f"here: {url} cannot be downloaded (Connection refused); {remedy}"
    url = "http://nowhere.invalid/a.zip"
    assert fail(url) == f"here: {url} cannot be downloaded (the name of its server is not known); {remedy}"
    url = f"https://127.0.0.1:{server.server_port}/a.zip"
    assert fail(url).startswith(f"here: {url} cannot be downloaded (TLS: ")


def test_an_encrypted_address_stays_encrypted(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = f"download it where that is possible and put it at {place(tmp_path)}"
    plain = server.serve("/a.zip", FILE)
    with run_server(CERTIFICATE) as encrypted:
        url = encrypted.serve("/a.zip", Answer(status=302, location=plain), Answer(FILE))
        assert fail(url).startswith(
            f"here: {url} cannot be downloaded (its certificate is not trusted: self-signed cert"
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert fail(url) == (
            f"here: {url} cannot be downloaded (it leads to {plain}, which is not encrypted); {remedy}"
        )
        assert server.count() == 0
        assert get(url).read_bytes() == FILE
        place(tmp_path).unlink()
        assert get(server.serve("/b/a.zip", Answer(status=302, location=url))).read_bytes() == FILE


def test_the_environments_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    assert get(server.serve("http://far.example/a.zip", FILE)).read_bytes() == FILE
    assert [(seen.path, seen.headers["Host"]) for seen in server.requests] == [
        ("http://far.example/a.zip", "far.example")
    ]


def test_a_disk_that_is_full(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    url = server.serve("/a.zip", FILE)
    with pytest.raises(RunError) as caught:
        get(url)
    assert str(caught.value) == (
        f"{place(tmp_path, 'a.zip.part')}: the disk is full: 3.0 MB are needed and 1.0 MB are free; make room; what "
        "was saved before is whole"
    )
    assert list_names(tmp_path / "cache/downloads") == []


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, server: Server) -> None:
    """A limit on the size of files stands for the disk: writing fails after the first megabyte."""
    url = server.serve("/a.zip", FILE)
    code = (
        "import resource, signal, sys; from ftcli.downloads import fetch_file; from ftcli.errors import *\n"
        "from ftcli.results import Silent; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "try: fetch_file(*sys.argv[1:], 'here', Silent(), DataError)\n"
        "except RunError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, url, f"sha256:{SHA256}"], capture_output=True, text=True)
    part = place(tmp_path, "a.zip.part")
    assert done.stdout == f"{part}: cannot be written (File too large); check the folder and its permissions\n"
    assert part.stat().st_size == 10**6
    assert get(url).read_bytes() == FILE
    assert server.requests[-1].range == "bytes=1000000-"


def test_places_that_cannot_be_used(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught:
        get(url, target=tmp_path / "file/a.zip")
    assert str(caught.value) == (
        f"{tmp_path}/file/a.zip: cannot be read (Not a directory); check what is there and its permissions"
    )
    (tmp_path / "a.zip.part").mkdir()
    with pytest.raises(RunError) as caught:
        get(url, target=tmp_path / "a.zip")
    assert str(caught.value) == (
        f"{tmp_path}/a.zip.part: cannot be written (Is a directory); check the folder and its permissions"
    )
    assert server.count() == 0


def test_redirects_keep_their_kind() -> None:
    """From an encrypted address to another is allowed; a server of this machine cannot show it without two of them."""
    request = Request("https://a.example/x")
    followed = transfer._Redirects().redirect_request(request, None, 302, "", None, "https://b.example/y")  # type: ignore[arg-type]
    assert followed is not None
    assert followed.full_url == "https://b.example/y"
