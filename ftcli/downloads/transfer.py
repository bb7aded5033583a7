"""One download over HTTP, which goes on where it was cut."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterable
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from io import FileIO
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ftcli import __version__, files
from ftcli.errors import RunError
from ftcli.results import Progress, Reporter, format_size

RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try; one more try without a new byte ends the download."""

TIMEOUT = 20.0
"""Seconds of silence after which a server counts as gone."""

_MAX_RETRY_DELAY = 30.0  # what a server may ask for before the user should hear of it instead
_MAX_SIZE = 10**11  # bytes; no file that ftcli knows is a tenth as long
_CHUNK_SIZE = 2**20
_TRANSIENT_STATUS_CODES = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(Exception):
    """A download that came to nothing: `str` is the reason, `missing` that the server has no such file."""

    def __init__(self, reason: str, is_missing: bool = False) -> None:
        super().__init__(reason)
        self.is_missing = is_missing


class _RetryableError(Exception):
    """A try that ended early; another may go on. `hopeless` unless the server has answered before."""

    def __init__(self, reason: str, retry_after: float = 0.0, is_permanent: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_permanent = is_permanent


class ResumableDownload:
    """A download into an open file, from where that file ends. What has come stays there, whatever happens.

    `file` is opened for appending, without a buffer. Beside it, `<name>.tag` keeps what tells the server's version
    of the file from later ones, so that parts of two are never put together.
    """

    def __init__(self, url: str, file: FileIO, part: Path, reporter: Reporter) -> None:
        self._url = url
        self._file = file
        self._part = part
        self._etag_file = etag_path(part)
        self._reporter = reporter
        self._opener = build_opener(_Redirects())
        self._size = file.seek(0, 2)
        self._total_size: int | None = None
        self._has_responded = False
        self._start_time = time.monotonic()
        self._start_size = self._size

    def run(self) -> None:
        """Download until the file is as long as the server says it is. Raises DownloadError, RunError if it cannot
        be written."""
        largest_size, failures = self._size, 0
        while True:
            try:
                self._request_once()
                return
            except _RetryableError as error:
                failures = 0 if self._size > largest_size else failures + 1
                largest_size = max(largest_size, self._size)
                if (
                    failures > len(RETRY_DELAYS)
                    or error.retry_after > _MAX_RETRY_DELAY
                    or (error.is_permanent and not self._has_responded)
                ):
                    raise DownloadError(str(error)) from error
                self._reporter.info(f"{self._url}: {error} at {format_size(self._size)}; trying again")
                time.sleep(max(error.retry_after, RETRY_DELAYS[max(failures - 1, 0)] if RETRY_DELAYS else 0.0))

    def _request_once(self) -> None:
        """Send one request and keep what comes of it. Returns when the file is whole."""
        try:
            with self._opener.open(self._make_request(), timeout=TIMEOUT) as response:
                self._read_headers(response)
                while chunk := response.read1(_CHUNK_SIZE):
                    self._write_chunk(chunk)
        except HTTPError as error:
            with error:
                self._handle_http_error(error)
        except (OSError, HTTPException, UnicodeError) as error:
            raise _describe_network_error(error) from error
        if self._total_size is not None and self._size < self._total_size:
            raise _RetryableError("the connection ended")

    def _make_request(self) -> Request:
        headers = {"User-Agent": f"ftcli/{__version__}", "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._etag_file.exists():
                headers["If-Range"] = self._etag_file.read_text(encoding="latin-1")
        return Request(self._url, headers=headers)

    def _read_headers(self, response: HTTPResponse) -> None:
        """Read what the answer will hold. A server that sends the whole, or the rest of another file, begins anew."""
        self._has_responded = True
        etag = _if_range_value(response.headers)
        content_length = response.headers.get("Content-Length", "")
        total = int(content_length) if content_length.isascii() and content_length.isdigit() else None
        if response.status == 206:
            content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            previous_etag = self._etag_file.read_text(encoding="latin-1") if self._etag_file.exists() else None
            if (
                not content_range
                or int(content_range[1]) != self._size
                or (previous_etag and etag and previous_etag != etag)
            ):
                self._start_over()
                raise _RetryableError("the server sent another part than was asked for")
            total = int(content_range[2]) if content_range[2] != "*" else total and total + self._size
        elif self._size:
            self._start_over()
        self._total_size = total
        if total is not None and total > _MAX_SIZE:
            raise DownloadError(f"it would be {format_size(total)} long")
        needed = (total or 0) - self._size
        if needed > shutil.disk_usage(self._part.parent).free:
            disk_full = OSError(errno.ENOSPC, "No space left on device")
            raise RunError(files.describe_write_error(self._part, needed, disk_full))
        if self._size == 0:
            self._save_etag(etag)

    def _save_etag(self, etag: str | None) -> None:
        if etag is None:
            self._etag_file.unlink(missing_ok=True)
        else:
            files.atomic_write(self._etag_file, etag.encode("latin-1", "ignore"))

    def _write_chunk(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            try:
                written = self._file.write(rest)
            except OSError as error:
                raise RunError(files.describe_write_error(self._part, len(rest), error)) from error
            self._size += written
            rest = rest[written:]
        if self._size > _MAX_SIZE:
            raise DownloadError(f"it is longer than {format_size(_MAX_SIZE)}")
        if self._total_size:
            bytes_per_second = (self._size - self._start_size) / max(time.monotonic() - self._start_time, 1e-3)
            name = self._part.name.removesuffix(".part")
            self._reporter.update_progress(
                Progress(f"download {name}", self._size, self._total_size, bytes_per_second, unit="bytes")
            )

    def _handle_http_error(self, error: HTTPError) -> None:
        """Return if the answer means that the file is whole; else say whether another try may help."""
        if error.code == 416 and self._size:
            content_range = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if content_range and int(content_range[1]) == self._size:
                self._total_size = self._size
                return
            self._start_over()
            raise _RetryableError("the server has no such part")
        if error.code in _TRANSIENT_STATUS_CODES:
            retry_after = error.headers.get("Retry-After", "")
            raise _RetryableError(
                f"HTTP {error.code} {error.msg}".strip(), float(retry_after) if retry_after.isdecimal() else 0.0
            )
        if 300 <= error.code < 400:
            raise DownloadError("its redirects lead nowhere")
        raise DownloadError(f"HTTP {error.code} {error.msg}".strip(), is_missing=error.code in (404, 410))

    def _start_over(self) -> None:
        self._file.truncate(0)
        self._etag_file.unlink(missing_ok=True)
        self._size = self._start_size = 0


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        kind = urlsplit(newurl).scheme
        if kind != "https" and (kind != "http" or req.type == "https"):
            fp.close()
            raise DownloadError(f"it leads to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # typeshed's


def etag_path(part: Path) -> Path:
    """Where a download keeps what tells the server's version of the file."""
    return part.with_name(f"{part.name}.tag")


def _if_range_value(headers: Message) -> str | None:
    """What If-Range may be asked with: a strong ETag or else a date (RFC 9110, section 13.1.5)."""
    etag: str | None = headers.get("ETag")
    return etag if etag and etag.startswith('"') else headers.get("Last-Modified")


def _describe_network_error(error: Exception) -> _RetryableError:
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    descriptions = {
        TimeoutError: f"no answer for {TIMEOUT:g} s",
        socket.gaierror: "the name of its server is not known",
        ssl.SSLCertVerificationError: f"its certificate is not trusted: {getattr(cause, 'verify_message', '')}",
        ssl.SSLError: f"TLS: {str(getattr(cause, 'reason', '')).replace('_', ' ').lower()}",
    }
    matching: Iterable[str] = (text for kind, text in descriptions.items() if isinstance(cause, kind))
    text = next(iter(matching), None) or getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    is_permanent = isinstance(cause, (socket.gaierror, ConnectionRefusedError, ssl.SSLError, InvalidURL, UnicodeError))
    return _RetryableError(" ".join(str(text).split()), is_permanent=is_permanent)
