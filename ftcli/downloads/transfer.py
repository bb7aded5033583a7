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

from ftcli import __version__, storage
from ftcli.errors import RunError
from ftcli.results import Progress, Reporter, tell_size

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try; one more try without a new byte ends the download."""

WAIT = 20.0
"""Seconds of silence after which a server counts as gone."""

_LONGEST_PAUSE = 30.0  # what a server may ask for before the user should hear of it instead
_MOST = 10**11  # bytes; no file that ftcli knows is a tenth as long
_BLOCK = 2**20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class TransferError(Exception):
    """A download that came to nothing: `str` is the reason, `missing` that the server has no such file."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class _Break(Exception):
    """A try that ended early; another may go on. `hopeless` unless the server has answered before."""

    def __init__(self, reason: str, wait: float = 0.0, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.hopeless = hopeless


class Transfer:
    """A download into an open file, from where that file ends. What has come stays there, whatever happens.

    `file` is opened for appending, without a buffer. Beside it, `<name>.tag` keeps what tells the server's version
    of the file from later ones, so that parts of two are never put together.
    """

    def __init__(self, url: str, file: FileIO, part: Path, reporter: Reporter) -> None:
        self._url = url
        self._file = file
        self._part = part
        self._tag = name_tag(part)
        self._reporter = reporter
        self._opener = build_opener(_Redirects())
        self._size = file.seek(0, 2)
        self._total: int | None = None
        self._answered = False
        self._begun = time.monotonic()
        self._first = self._size

    def run(self) -> None:
        """Download until the file is as long as the server says it is. Raises TransferError, RunError if it cannot
        be written."""
        reached, failures = self._size, 0
        while True:
            try:
                self._receive()
                return
            except _Break as error:
                failures = 0 if self._size > reached else failures + 1
                reached = max(reached, self._size)
                if failures > len(PAUSES) or error.wait > _LONGEST_PAUSE or (error.hopeless and not self._answered):
                    raise TransferError(str(error)) from error
                self._reporter.say(f"{self._url}: {error} at {tell_size(self._size)}; trying again")
                time.sleep(max(error.wait, PAUSES[max(failures - 1, 0)] if PAUSES else 0.0))

    def _receive(self) -> None:
        """Send one request and keep what comes of it. Returns when the file is whole."""
        try:
            with self._opener.open(self._make_request(), timeout=WAIT) as response:
                self._begin(response)
                while block := response.read1(_BLOCK):
                    self._append(block)
        except HTTPError as error:
            with error:
                self._judge(error)
        except (OSError, HTTPException, UnicodeError) as error:
            raise _explain(error) from error
        if self._total is not None and self._size < self._total:
            raise _Break("the connection ended")

    def _make_request(self) -> Request:
        headers = {"User-Agent": f"ftcli/{__version__}", "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._tag.exists():
                headers["If-Range"] = self._tag.read_text(encoding="latin-1")
        return Request(self._url, headers=headers)

    def _begin(self, response: HTTPResponse) -> None:
        """Read what the answer will hold. A server that sends the whole, or the rest of another file, begins anew."""
        self._answered = True
        tag = _choose_tag(response.headers)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            before = self._tag.read_text(encoding="latin-1") if self._tag.exists() else None
            if not found or int(found[1]) != self._size or (before and tag and before != tag):
                self._clear()
                raise _Break("the server sent another part than was asked for")
            total = int(found[2]) if found[2] != "*" else total and total + self._size
        elif self._size:
            self._clear()
        self._total = total
        if total is not None and total > _MOST:
            raise TransferError(f"it would be {tell_size(total)} long")
        needed = (total or 0) - self._size
        if needed > shutil.disk_usage(self._part.parent).free:
            full = OSError(errno.ENOSPC, "No space left on device")
            raise RunError(storage.explain_failure(self._part, needed, full))
        if self._size == 0:
            self._keep_tag(tag)

    def _keep_tag(self, tag: str | None) -> None:
        if tag is None:
            self._tag.unlink(missing_ok=True)
        else:
            storage.replace_file(self._tag, tag.encode("latin-1", "ignore"))

    def _append(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            try:
                written = self._file.write(rest)
            except OSError as error:
                raise RunError(storage.explain_failure(self._part, len(rest), error)) from error
            self._size += written
            rest = rest[written:]
        if self._size > _MOST:
            raise TransferError(f"it is longer than {tell_size(_MOST)}")
        if self._total:
            rate = (self._size - self._first) / max(time.monotonic() - self._begun, 1e-3)
            name = self._part.name.removesuffix(".part")
            self._reporter.advance(Progress(f"download {name}", self._size, self._total, rate, unit="bytes"))

    def _judge(self, error: HTTPError) -> None:
        """Return if the answer means that the file is whole; else say whether another try may help."""
        if error.code == 416 and self._size:
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if whole and int(whole[1]) == self._size:
                self._total = self._size
                return
            self._clear()
            raise _Break("the server has no such part")
        if error.code in _TRANSIENT:
            after = error.headers.get("Retry-After", "")
            raise _Break(f"HTTP {error.code} {error.msg}".strip(), float(after) if after.isdecimal() else 0.0)
        if 300 <= error.code < 400:
            raise TransferError("its redirects lead nowhere")
        raise TransferError(f"HTTP {error.code} {error.msg}".strip(), missing=error.code in (404, 410))

    def _clear(self) -> None:
        self._file.truncate(0)
        self._tag.unlink(missing_ok=True)
        self._size = self._first = 0


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        kind = urlsplit(newurl).scheme
        if kind != "https" and (kind != "http" or req.type == "https"):
            fp.close()
            raise TransferError(f"it leads to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # typeshed's


def name_tag(part: Path) -> Path:
    """Where a download keeps what tells the server's version of the file."""
    return part.with_name(f"{part.name}.tag")


def _choose_tag(headers: Message) -> str | None:
    """What If-Range may be asked with: a strong ETag or else a date (RFC 9110, section 13.1.5)."""
    tag: str | None = headers.get("ETag")
    return tag if tag and tag.startswith('"') else headers.get("Last-Modified")


def _explain(error: Exception) -> _Break:
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    words = {
        TimeoutError: f"no answer for {WAIT:g} s",
        socket.gaierror: "the name of its server is not known",
        ssl.SSLCertVerificationError: f"its certificate is not trusted: {getattr(cause, 'verify_message', '')}",
        ssl.SSLError: f"TLS: {str(getattr(cause, 'reason', '')).replace('_', ' ').lower()}",
    }
    known: Iterable[str] = (text for kind, text in words.items() if isinstance(cause, kind))
    text = next(iter(known), None) or getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    hopeless = isinstance(cause, (socket.gaierror, ConnectionRefusedError, ssl.SSLError, InvalidURL, UnicodeError))
    return _Break(" ".join(str(text).split()), hopeless=hopeless)
