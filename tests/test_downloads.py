"""Tests of downloads: cached, resumed and verified, with one sentence per error."""

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

from ftcli import __version__, downloads
from ftcli.downloads import download_file, is_offline
from ftcli.errors import DataError, RunError
from ftcli.results import NullReporter
from tests.conftest import LibraryLog, RecordingReporter
from tests.server import Response, Server, run_server

FILE = random.Random(0).randbytes(3_000_000)
OTHER = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(FILE).hexdigest()
SHA1 = hashlib.sha1(FILE).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # for 127.0.0.1, self-signed


def download(url: str, digest: str = f"sha256:{SHA256}", target: Path | None = None) -> Path:
    return download_file(url, digest, "here", NullReporter(), DataError, target)


def download_error(url: str, digest: str = f"sha256:{SHA256}", target: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        download(url, digest, target)
    return str(caught.value)


def cached_path(tmp_path: Path, name: str = "a.zip") -> Path:
    return tmp_path / f"cache/downloads/{SHA256[:16]}-{name}"


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_file_downloads_once(tmp_path: Path, server: Server, log: LibraryLog) -> None:
    url = server.serve("/a.zip", FILE)
    reporter = RecordingReporter()
    for _ in range(2):
        path = download_file(url, f"sha256:{SHA256}", "here", reporter, DataError)
        assert path == cached_path(tmp_path)
        assert path.read_bytes() == FILE
    (request,) = server.requests
    assert (request.method, request.headers["Accept-Encoding"]) == ("GET", "identity")
    assert request.headers["User-Agent"] == f"ftcli/{__version__}"
    assert list_names(path.parent) == [path.name]
    assert log.messages == [f"downloading {url} to {path}"]
    last = reporter.progress[-1]
    assert (last.task, last.done, last.total, last.unit) == (f"download {path.name}", 3_000_000, 3_000_000, "bytes")
    assert last.rate is not None


@pytest.mark.parametrize(
    "digest", [f"sha1:{SHA1}", f"md5:{hashlib.md5(FILE).hexdigest()}", f"sha256:{SHA256[:8].upper()}"]
)
def test_download_file_accepts_other_digests(tmp_path: Path, server: Server, digest: str) -> None:
    url = server.serve("/a.zip", FILE)
    target = tmp_path / "deep/er/file"
    assert download(url, digest, target) == target
    assert target.read_bytes() == FILE
    assert download(url, digest, target) == target
    assert server.count() == 1


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ({"FTCLI_CACHE": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own"),
        ({"FTCLI_CACHE": "", "XDG_CACHE_HOME": "{}/xdg"}, "xdg/ftcli"),
        ({"FTCLI_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{}/home"}, "home/.cache/ftcli"),
    ],
)
def test_download_file_uses_cache_variables(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str], expected: str
) -> None:
    for name, value in set_to.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    url = server.serve("/x/a%20b%2Fc.zip", FILE)
    assert download(url + "?token=1") == tmp_path / expected / "downloads" / f"{SHA256[:16]}-c.zip"


def test_download_file_resumes_after_disconnect(tmp_path: Path, server: Server, log: LibraryLog) -> None:
    cut = [Response(FILE, cut_after=length) for length in (500_000, 400_000, 1_000_000)]
    url = server.serve("/a.zip", *cut, Response(FILE, cut_after=1000, reset=True), Response(FILE))
    assert download_file(url, f"sha256:{SHA256}", "here", NullReporter(), DataError).read_bytes() == FILE
    ranges = [request.range for request in server.requests]
    assert ranges[:4] == [None, "bytes=500000-", "bytes=900000-", "bytes=1900000-"]
    assert [request.headers["If-Range"] for request in server.requests] == [None, '"1"', '"1"', '"1"', '"1"']
    assert log.messages[1] == f"{url}: connection closed at 0.5 MB; trying again"
    assert list_names(cached_path(tmp_path).parent) == [cached_path(tmp_path).name]


def test_download_file_stops_after_five_retries(tmp_path: Path, server: Server, log: LibraryLog) -> None:
    url = server.serve("/a.zip", Response(FILE, cut_after=1000), Response(FILE, cut_after=0))
    assert download_error(url) == (
        f"here: {url} cannot be downloaded (connection closed); download it elsewhere and copy it to "
        f"{cached_path(tmp_path)}"
    )
    assert server.count() == 6
    server.serve("/a.zip", FILE)
    assert download_file(url, f"sha256:{SHA256}", "here", NullReporter(), DataError).read_bytes() == FILE
    assert log.messages[-1] == f"downloading {url} to {cached_path(tmp_path)}, resuming at 0.0 MB"
    assert server.requests[-1].range == "bytes=1000-"


def test_download_file_resumes_after_kill(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Response(FILE, cut_after=2_000_000, delay=60), Response(FILE))
    with start_download(url) as process:
        wait_for(cached_path(tmp_path, "a.zip.part"), 2_000_000)
        process.send_signal(signal.SIGKILL)
    assert not cached_path(tmp_path).exists()
    assert download(url).read_bytes() == FILE
    assert [(request.range, request.headers["If-Range"]) for request in server.requests] == [
        (None, None),
        ("bytes=2000000-", '"1"'),
    ]


def test_download_file_reuses_complete_part(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    cached_path(tmp_path).parent.mkdir(parents=True)
    cached_path(tmp_path, "a.zip.part").write_bytes(FILE)
    assert download(url).read_bytes() == FILE
    assert [request.range for request in server.requests] == ["bytes=3000000-"]


def test_download_file_waits_for_other_process(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Response(FILE, cut_after=1_000_000, delay=60))
    with start_download(url) as first:
        wait_for(cached_path(tmp_path, "a.zip.part"), 1_000_000)
        with start_download(url) as second:
            assert second.stdout is not None
            waiting = "another ftcli is downloading " + cached_path(tmp_path).name + "; waiting for it\n"
            assert second.stdout.readline() == waiting
            server.stopping.set()
            server.serve("/a.zip", FILE)
            assert first.wait(20) == second.wait(20) == 0
    assert download(url).read_bytes() == FILE
    # The server closes the connection when it stops during a delay, so the first process sends a second request.
    assert [request.range for request in server.requests] == [None, "bytes=1000000-"]
    assert list_names(cached_path(tmp_path).parent) == [cached_path(tmp_path).name]


def test_download_file_restarts_after_wrong_download(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Response(OTHER, cut_after=1_000_000, delay=60), OTHER, FILE)
    with start_download(url) as first:
        wait_for(cached_path(tmp_path, "a.zip.part"), 1_000_000)
        with start_download(url) as second:
            assert second.stdout is not None
            assert "waiting for it" in second.stdout.readline()
            server.stopping.set()
            assert (first.wait(20), second.wait(20)) == (1, 0)
    assert cached_path(tmp_path).read_bytes() == FILE
    assert [request.range for request in server.requests] == [None, "bytes=1000000-", None]


def start_download(url: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from ftcli.console.terminal import TerminalReporter; from ftcli.downloads import download_file\n"
        "from ftcli.errors import DataError\n"
        "with TerminalReporter(sys.stdout) as reporter:\n"
        "    download_file(*sys.argv[1:], 'here', reporter, DataError)"
    )
    command = [sys.executable, "-u", "-c", code, url, f"sha256:{SHA256}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(path: Path, size: int) -> None:
    until = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < until, "nothing was downloaded"
        time.sleep(0.02)


def test_download_file_restarts_without_range_support(server: Server) -> None:
    url = server.serve("/a.zip", Response(FILE, cut_after=1_000_000), Response(FILE, ranges=False))
    assert download(url).read_bytes() == FILE
    assert server.count() == 2


def test_download_file_counts_only_new_bytes(server: Server) -> None:
    shorter = [Response(FILE, cut_after=length, ranges=False) for length in (2000, 1000, 1500, 1000, 1500, 1000)]
    assert "(connection closed)" in download_error(server.serve("/a.zip", *shorter, Response(FILE)))
    assert server.count() == 6


@pytest.mark.parametrize("if_range", [True, False])
def test_download_file_restarts_if_file_changed(server: Server, if_range: bool) -> None:
    url = server.serve("/a.zip", Response(OTHER, cut_after=1_000_000), Response(FILE, etag='"2"', if_range=if_range))
    assert download(url).read_bytes() == FILE


def test_if_range_uses_date_instead_of_weak_etag(server: Server) -> None:
    date = "Sun, 01 Mar 2026 10:00:00 GMT"
    weak = Response(FILE, etag='W/"1"', headers={"Last-Modified": date}, cut_after=1_000_000, if_range=False)
    url = server.serve("/a.zip", weak, Response(FILE, etag='W/"1"', headers={"Last-Modified": date}, if_range=False))
    assert download(url).read_bytes() == FILE
    assert server.requests[-1].headers["If-Range"] == date


def test_download_file_restarts_if_part_too_long(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    cached_path(tmp_path).parent.mkdir(parents=True)
    cached_path(tmp_path, "a.zip.part").write_bytes(FILE + b"more")
    assert download(url).read_bytes() == FILE
    assert [request.range for request in server.requests] == ["bytes=3000004-", None]


def test_download_file_handles_wrong_content_length(tmp_path: Path, server: Server) -> None:
    assert download(server.serve("/long.zip", Response(FILE, content_length=3_000_100))).read_bytes() == FILE
    assert download(server.serve("/none.zip", Response(FILE, content_length=-1))).read_bytes() == FILE
    url = server.serve("/short.zip", Response(FILE, content_length=2_999_900))
    found = hashlib.sha256(FILE[:2_999_900]).hexdigest()
    assert download_error(url) == (
        f"here: the download from {url} is not the expected file (expected SHA-256 {SHA256}, found {found}); try "
        "again, or on another network"
    )
    url = server.serve("/always.zip", Response(FILE, content_length=3_000_100, ranges=False))
    assert "(connection closed)" in download_error(url)
    assert server.count("/always.zip") == 6
    url = server.serve("/endless.zip", Response(FILE, content_length=10**12))
    assert "(its size of 1000.0 GB is above the limit of 100.0 GB)" in download_error(url)


def test_download_file_limits_size(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.downloads._MAX_SIZE", 2_000_000)
    assert "(it is larger than the limit of 2.0 MB)" in download_error(
        server.serve("/a.zip", Response(FILE, content_length=-1))
    )


def test_download_file_deletes_wrong_file(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", OTHER)
    assert download_error(url, f"sha1:{SHA1}") == (
        f"here: the download from {url} is not the expected file (expected SHA-1 {SHA1}, found "
        f"{hashlib.sha1(OTHER).hexdigest()}); try again, or on another network"
    )
    assert list_names(tmp_path / "cache/downloads") == []


def test_download_file_replaces_corrupt_file(tmp_path: Path, server: Server, log: LibraryLog) -> None:
    url = server.serve("/a.zip", FILE)
    path = download(url)
    path.write_bytes(OTHER)
    assert download_file(url, f"sha256:{SHA256}", "here", NullReporter(), DataError).read_bytes() == FILE
    assert log.warnings == [
        f"here: {path} is not the file at {url} (expected SHA-256 {SHA256}, found {OTHER_SHA256}); downloading it again"
    ]
    path.write_bytes(OTHER)
    server.serve("/a.zip", Response(status=404))
    download_error(url)
    assert path.read_bytes() == OTHER


def test_download_file_makes_no_request_offline(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.serve("/a.zip", FILE)
    for value, expected in (("1", True), ("Yes", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("FTCLI_OFFLINE", value)
        assert is_offline() == expected
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    assert download_error(url) == (
        f"here: {url} is not cached and FTCLI_OFFLINE is set; copy the file to {cached_path(tmp_path)}, or unset "
        "FTCLI_OFFLINE"
    )
    assert not (tmp_path / "cache").exists()
    cached_path(tmp_path).parent.mkdir(parents=True)
    cached_path(tmp_path).write_bytes(OTHER)
    assert download_error(url) == (
        f"here: {cached_path(tmp_path)} is not the file at {url} (expected SHA-256 {SHA256}, found {OTHER_SHA256}) and "
        "FTCLI_OFFLINE is set; replace the file, or unset FTCLI_OFFLINE"
    )
    cached_path(tmp_path).write_bytes(FILE)
    assert download(url) == cached_path(tmp_path)
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
def test_download_file_rejects_invalid_url(url: str) -> None:
    assert download_error(url) == f"here: {url!r} is not a valid URL; give one that begins with https:// or http://"


def test_redirects_keep_range(server: Server) -> None:
    server.serve("/c", Response(FILE, cut_after=1_000_000), Response(FILE))
    server.serve("/b", Response(status=301, location="/c", etag=None))
    url = server.serve("/a.zip", Response(status=302, location=server.address + "/b", etag=None))
    assert download(url).read_bytes() == FILE
    assert [request.range for request in server.requests if request.path == "/c"] == [None, "bytes=1000000-"]


def test_redirects_reject_loops_and_files(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", Response(status=302, location="/a.zip"))
    remedy = f"download it elsewhere and copy it to {cached_path(tmp_path)}"
    assert download_error(url) == f"here: {url} cannot be downloaded (invalid redirect); {remedy}"
    server.serve("/a.zip", Response(status=302, location="file:///etc/passwd"))
    assert download_error(url) == f"here: {url} cannot be downloaded (invalid redirect); {remedy}"


@pytest.mark.parametrize(
    ("response", "reason", "remedy", "num_requests"),
    [
        (Response(status=404), "HTTP 404 Not Found", "check the URL, or copy the file", 1),
        (Response(status=403), "HTTP 403 Forbidden", "download it elsewhere and copy it", 1),
        (Response(status=500), "HTTP 500 Internal Server Error", "download it elsewhere and copy it", 5),
        (
            Response(status=503, headers={"Retry-After": "3600"}),
            "HTTP 503 Service Unavailable",
            "download it elsewhere and copy it",
            1,
        ),
    ],
)
def test_download_file_reports_http_errors(
    tmp_path: Path, server: Server, response: Response, reason: str, remedy: str, num_requests: int
) -> None:
    url = server.serve("/a.zip", response)
    assert download_error(url) == f"here: {url} cannot be downloaded ({reason}); {remedy} to {cached_path(tmp_path)}"
    assert server.count() == num_requests
    assert list_names(tmp_path / "cache/downloads") == []


def test_download_file_honours_retry_after(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr("ftcli.downloads.RETRY_DELAYS", (0.5, 1.0))
    monkeypatch.setattr("ftcli.downloads.time.sleep", delays.append)
    busy = [
        Response(status=500),
        Response(status=429, headers={"Retry-After": "7"}),
        Response(FILE, cut_after=9),
        Response(FILE),
    ]
    assert download(server.serve("/a.zip", *busy)).read_bytes() == FILE
    assert delays == [0.5, 7.0, 0.5]


def test_download_file_times_out(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcli.downloads.TIMEOUT", 0.2)
    url = server.serve("/a.zip", Response(FILE, cut_after=1_000_000, delay=60), Response(FILE))
    assert download(url).read_bytes() == FILE
    assert server.requests[-1].range == "bytes=1000000-"
    url = server.serve("/b.zip", Response(FILE, delay=60))
    assert "(no response for 0.2 s)" in download_error(url)


def test_download_file_reports_connection_errors(tmp_path: Path, server: Server) -> None:
    remedy = f"download it elsewhere and copy it to {cached_path(tmp_path)}"
    with run_server() as stopped:
        url = stopped.address + "/a.zip"
    assert download_error(url) == f"here: {url} cannot be downloaded (Connection refused); {remedy}"
    url = "http://nowhere.invalid/a.zip"
    assert download_error(url) == f"here: {url} cannot be downloaded (unknown host name); {remedy}"
    url = f"https://127.0.0.1:{server.server_port}/a.zip"
    assert download_error(url).startswith(f"here: {url} cannot be downloaded (TLS: ")


def test_redirects_reject_http_after_https(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = f"download it elsewhere and copy it to {cached_path(tmp_path)}"
    plain = server.serve("/a.zip", FILE)
    with run_server(CERTIFICATE) as encrypted:
        url = encrypted.serve("/a.zip", Response(status=302, location=plain), Response(FILE))
        assert download_error(url).startswith(
            f"here: {url} cannot be downloaded (certificate not trusted: self-signed cert"
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert download_error(url) == (
            f"here: {url} cannot be downloaded (redirect to {plain}, which is not encrypted); {remedy}"
        )
        assert server.count() == 0
        assert download(url).read_bytes() == FILE
        cached_path(tmp_path).unlink()
        assert download(server.serve("/b/a.zip", Response(status=302, location=url))).read_bytes() == FILE


def test_download_file_uses_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    assert download(server.serve("http://far.example/a.zip", FILE)).read_bytes() == FILE
    assert [(request.path, request.headers["Host"]) for request in server.requests] == [
        ("http://far.example/a.zip", "far.example")
    ]


def test_download_file_checks_free_space(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    url = server.serve("/a.zip", FILE)
    with pytest.raises(RunError) as caught:
        download(url)
    assert str(caught.value) == (
        f"{cached_path(tmp_path, 'a.zip.part')}: the disk is full: 3.0 MB needed, 1.0 MB free; free some space (files "
        "saved before are intact)"
    )
    assert list_names(tmp_path / "cache/downloads") == []


def test_download_file_resumes_after_full_disk(tmp_path: Path, server: Server) -> None:
    """A limit on the size of files simulates a full disk after the first megabyte."""
    url = server.serve("/a.zip", FILE)
    code = (
        "import resource, signal, sys; from ftcli.downloads import download_file; from ftcli.errors import *\n"
        "from ftcli.results import NullReporter; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "try: download_file(*sys.argv[1:], 'here', NullReporter(), DataError)\n"
        "except RunError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, url, f"sha256:{SHA256}"], capture_output=True, text=True)
    part = cached_path(tmp_path, "a.zip.part")
    assert done.stdout == f"{part}: cannot be written (File too large); check the folder and its permissions\n"
    assert part.stat().st_size == 10**6
    assert download(url).read_bytes() == FILE
    assert server.requests[-1].range == "bytes=1000000-"


def test_download_file_reports_unusable_target(tmp_path: Path, server: Server) -> None:
    url = server.serve("/a.zip", FILE)
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught:
        download(url, target=tmp_path / "file/a.zip")
    assert str(caught.value) == (
        f"{tmp_path}/file/a.zip: cannot be read (Not a directory); check the path and its permissions"
    )
    (tmp_path / "a.zip.part").mkdir()
    with pytest.raises(RunError) as caught:
        download(url, target=tmp_path / "a.zip")
    assert str(caught.value) == (
        f"{tmp_path}/a.zip.part: cannot be written (Is a directory); check the folder and its permissions"
    )
    assert server.count() == 0


def test_redirects_allow_https_to_https() -> None:
    """Uses the handler directly: two https servers with one certificate are not available."""
    request = Request("https://a.example/x")
    followed = downloads._SecureRedirectHandler().redirect_request(request, None, 302, "", None, "https://b.example/y")  # type: ignore[arg-type]
    assert followed is not None
    assert followed.full_url == "https://b.example/y"
