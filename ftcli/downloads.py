"""Downloads over HTTP: resumable, cached, and verified by their digest at every use."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from io import FileIO
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ftcli import files
from ftcli.caching.eviction import get_cache_dir
from ftcli.errors import FtcliError, RunError
from ftcli.results import Progress, Reporter, format_size
from ftcli.version import __version__

logger = logging.getLogger(__name__)

RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each retry; the download fails after one more attempt without a new byte."""

TIMEOUT = 20.0
"""Seconds to wait for a response."""

_MAX_RETRY_DELAY = 30.0  # seconds; a server that asks for a longer delay is reported to the user
_MAX_SIZE = 10**11  # bytes, about ten times the largest known file
_CHUNK_SIZE = 2**20
_TRANSIENT_STATUS_CODES = (408, 425, 429, 500, 502, 503, 504)
_ALGORITHM_NAMES = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}
_URL_PATTERN = re.compile(r"[!-~]+\Z")  # ASCII without spaces and control characters


class _DownloadError(Exception):
    """A download that failed; `is_missing` if the server does not have the file."""

    def __init__(self, reason: str, is_missing: bool = False) -> None:
        super().__init__(reason)
        self.is_missing = is_missing


class _RetryableError(Exception):
    """A failed attempt. A permanent error is retried only if the server has responded before."""

    def __init__(self, reason: str, retry_after: float = 0.0, is_permanent: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_permanent = is_permanent


def is_offline() -> bool:
    """Return whether FTCLI_OFFLINE is set to 1, true or yes."""
    return os.environ.get("FTCLI_OFFLINE", "").strip().lower() in ("1", "true", "yes")


def download_file(
    url: str, digest: str, location: str, reporter: Reporter, error_type: type[FtcliError], target: Path | None = None
) -> Path:
    """Download the file at `url` (http or https) unless it is cached, and return its path.

    `digest` is "sha256:<hex>", "sha1:<hex>" or "md5:<hex>" with at least the first 8 digits; it is verified at every
    call. The path is `target`, or a file in the cache directory. The download is written to <name>.part next to it,
    which a later call resumes. If several processes need the file, one downloads it and the others wait.

    Raises `error_type` beginning with `location` for an invalid URL, a failed download, a file with another digest, or
    a missing file with FTCLI_OFFLINE set; RunError if the file cannot be written.
    """
    if not _is_url(url):
        raise error_type(f"{location}: {url!r} is not a valid URL; give one that begins with https:// or http://")
    algorithm, _, expected = digest.lower().partition(":")
    path = target or _cache_path(url, expected)
    actual = _hash_if_exists(path, algorithm)
    if actual and actual.startswith(expected):
        return path
    mismatch = f"expected {_ALGORITHM_NAMES[algorithm]} {expected}, found {{}}"
    if is_offline():
        raise error_type(
            f"{location}: {_describe_offline_error(url, path, mismatch.format(actual) if actual else None)}"
        )
    if actual:
        logger.warning(f"{location}: {path} is not the file at {url} ({mismatch.format(actual)}); downloading it again")
    with _open_part(path) as (part, file):
        actual = _hash_if_exists(path, algorithm)  # another process may have downloaded it in the meantime
        if actual and actual.startswith(expected):
            return path
        try:
            actual = _download(url, algorithm, part, file, path, reporter)
        except _DownloadError as error:
            remedy = "check the URL, or copy the file" if error.is_missing else "download it elsewhere and copy it"
            raise error_type(f"{location}: {url} cannot be downloaded ({error}); {remedy} to {path}") from error
        if not actual.startswith(expected):
            part.unlink()
            _etag_path(part).unlink(missing_ok=True)
            raise error_type(
                f"{location}: the download from {url} is not the expected file ({mismatch.format(actual)}); try again, "
                "or on another network"
            )
        files.commit_file(part, path)
    _etag_path(part).unlink(missing_ok=True)
    return path


def _describe_offline_error(url: str, path: Path, mismatch: str | None) -> str:
    if mismatch:
        return (
            f"{path} is not the file at {url} ({mismatch}) and FTCLI_OFFLINE is set; replace the file, or unset "
            "FTCLI_OFFLINE"
        )
    return f"{url} is not cached and FTCLI_OFFLINE is set; copy the file to {path}, or unset FTCLI_OFFLINE"


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and _URL_PATTERN.match(url) is not None
        )
    except ValueError:  # unbalanced brackets or a port that is not a number
        return False


def _download(url: str, algorithm: str, part: Path, file: FileIO, path: Path, reporter: Reporter) -> str:
    """Download the rest of a partial file and return the digest of the file."""
    size = file.seek(0, 2)
    logger.info(f"downloading {url} to {path}" + (f", resuming at {format_size(size)}" if size else ""))
    _ResumableDownload(url, file, part, reporter).run()
    os.fsync(file.fileno())
    file.seek(0)  # hash through the same descriptor: closing another one would release the lock
    return hashlib.file_digest(file, algorithm).hexdigest()


def _cache_path(url: str, expected: str) -> Path:
    """Return the path of a file in the cache; the beginning of its digest distinguishes files of the same name."""
    name = re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)
    return get_cache_dir() / "downloads" / f"{expected[:16]}-{name[-100:] or 'file'}"


def _hash_if_exists(path: Path, algorithm: str) -> str | None:
    try:
        return files.hash_file(path, algorithm)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


@contextmanager
def _open_part(path: Path) -> Iterator[tuple[Path, FileIO]]:
    """Open the partial file of a download under a lock; an empty one is removed at the end."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(part)
    except OSError as error:
        raise RunError(files.describe_write_error(part, 0, error)) from error
    with file:
        try:
            yield part, file
        finally:
            if file.seek(0, 2) == 0:
                part.unlink(missing_ok=True)


def _open_locked(part: Path) -> FileIO:
    while True:
        file = part.open("a+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            logger.info(f"another ftcli is downloading {part.name.removesuffix('.part')}; waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX)
        # The previous owner of the lock may have renamed or removed the file; then it must be opened again.
        if part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


class _ResumableDownload:
    """A download that is appended to an open, unbuffered file.

    The ETag or date of the server's version is stored next to it in `<name>.tag`, so that parts of different versions
    are never combined.
    """

    def __init__(self, url: str, file: FileIO, part: Path, reporter: Reporter) -> None:
        self._url = url
        self._file = file
        self._part = part
        self._etag_file = _etag_path(part)
        self._reporter = reporter
        self._opener = build_opener(_SecureRedirectHandler())
        self._size = file.seek(0, 2)
        self._total_size: int | None = None
        self._has_responded = False
        self._start_time = time.monotonic()
        self._start_size = self._size

    def run(self) -> None:
        """Download until the file is complete. Raises _DownloadError, or RunError if it cannot be written."""
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
                    raise _DownloadError(str(error)) from error
                logger.info(f"{self._url}: {error} at {format_size(self._size)}; trying again")
                time.sleep(max(error.retry_after, RETRY_DELAYS[max(failures - 1, 0)] if RETRY_DELAYS else 0.0))

    def _request_once(self) -> None:
        """Send one request and append the response. Returns when the file is complete."""
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
            raise _RetryableError("connection closed")

    def _make_request(self) -> Request:
        headers = {"User-Agent": f"ftcli/{__version__}", "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if etag := self._load_etag():
                headers["If-Range"] = etag
        return Request(self._url, headers=headers)

    def _read_headers(self, response: HTTPResponse) -> None:
        """Check the headers of a response, and start over if it is the complete file or the rest of another version."""
        self._has_responded = True
        etag = _if_range_value(response.headers)
        content_length = response.headers.get("Content-Length", "")
        total = int(content_length) if content_length.isascii() and content_length.isdigit() else None
        if response.status == 206:
            content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            previous_etag = self._load_etag()
            if (
                not content_range
                or int(content_range[1]) != self._size
                or (previous_etag and etag and previous_etag != etag)
            ):
                self._start_over()
                raise _RetryableError("wrong byte range received")
            total = int(content_range[2]) if content_range[2] != "*" else total and total + self._size
        elif self._size:
            self._start_over()
        self._total_size = total
        if total is not None and total > _MAX_SIZE:
            raise _DownloadError(f"its size of {format_size(total)} is above the limit of {format_size(_MAX_SIZE)}")
        needed = (total or 0) - self._size
        if needed > shutil.disk_usage(self._part.parent).free:
            disk_full = OSError(errno.ENOSPC, "No space left on device")
            raise RunError(files.describe_write_error(self._part, needed, disk_full))
        if self._size == 0:
            self._save_etag(etag)

    def _load_etag(self) -> str | None:
        return self._etag_file.read_text(encoding="latin-1") if self._etag_file.exists() else None

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
            raise _DownloadError(f"it is larger than the limit of {format_size(_MAX_SIZE)}")
        if self._total_size:
            bytes_per_second = (self._size - self._start_size) / max(time.monotonic() - self._start_time, 1e-3)
            name = self._part.name.removesuffix(".part")
            self._reporter.update_progress(
                Progress(f"download {name}", self._size, self._total_size, bytes_per_second, unit="bytes")
            )

    def _handle_http_error(self, error: HTTPError) -> None:
        """Return if the status means that the file is complete. Raises _RetryableError or _DownloadError otherwise."""
        if error.code == 416 and self._size:
            content_range = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if content_range and int(content_range[1]) == self._size:
                self._total_size = self._size
                return
            self._start_over()
            raise _RetryableError("byte range rejected")
        if error.code in _TRANSIENT_STATUS_CODES:
            retry_after = error.headers.get("Retry-After", "")
            raise _RetryableError(
                f"HTTP {error.code} {error.msg}".strip(), float(retry_after) if retry_after.isdecimal() else 0.0
            )
        if 300 <= error.code < 400:
            raise _DownloadError("invalid redirect")
        raise _DownloadError(f"HTTP {error.code} {error.msg}".strip(), is_missing=error.code in (404, 410))

    def _start_over(self) -> None:
        self._file.truncate(0)
        self._etag_file.unlink(missing_ok=True)
        self._size = self._start_size = 0


class _SecureRedirectHandler(HTTPRedirectHandler):
    """A handler that follows redirects, but not from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            fp.close()
            raise _DownloadError(f"redirect to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # typeshed's


def _etag_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _if_range_value(headers: Message) -> str | None:
    """Return a strong ETag or else a date, the values that If-Range allows (RFC 9110, section 13.1.5)."""
    etag: str | None = headers.get("ETag")
    return etag if etag and etag.startswith('"') else headers.get("Last-Modified")


def _describe_network_error(error: Exception) -> _RetryableError:
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    descriptions = {
        TimeoutError: f"no response for {TIMEOUT:g} s",
        socket.gaierror: "unknown host name",
        ssl.SSLCertVerificationError: f"certificate not trusted: {getattr(cause, 'verify_message', '')}",
        ssl.SSLError: f"TLS: {str(getattr(cause, 'reason', '')).replace('_', ' ').lower()}",
    }
    matching: Iterable[str] = (text for kind, text in descriptions.items() if isinstance(cause, kind))
    text = next(iter(matching), None) or getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    is_permanent = isinstance(cause, (socket.gaierror, ConnectionRefusedError, ssl.SSLError, InvalidURL, UnicodeError))
    return _RetryableError(" ".join(str(text).split()), is_permanent=is_permanent)
