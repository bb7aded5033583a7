"""Where downloaded files are kept, and how they get there: whole, checked, and once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ftcli import files
from ftcli.caching.eviction import get_cache_dir
from ftcli.downloads.transfer import DownloadError, ResumableDownload, etag_path
from ftcli.errors import FtcliError, RunError
from ftcli.results import Reporter, format_size

_ALGORITHM_NAMES = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}
_URL_PATTERN = re.compile(r"[!-~]+\Z")  # what an address may hold: ASCII, and neither spaces nor control characters


def is_offline() -> bool:
    """Whether the user forbids connections: FTCLI_OFFLINE is 1, true or yes."""
    return os.environ.get("FTCLI_OFFLINE", "").strip().lower() in ("1", "true", "yes")


def download_file(
    url: str, digest: str, location: str, reporter: Reporter, error_type: type[FtcliError], target: Path | None = None
) -> Path:
    """The file at `url` (http or https), whose digest is checked on every use.

    `digest` is "sha256:<hex>", "sha1:<hex>" or "md5:<hex>", at least the first 8 digits. The file is at `target`, else
    in the cache: below $FTCLI_CACHE, $XDG_CACHE_HOME/ftcli or ~/.cache/ftcli, the first that is set. If it is not there
    or is another, which the reporter is told, it is downloaded into <name>.part beside it, which a later call goes on
    with, and takes its name when it is whole and right. Of several processes one downloads and the others wait for it.

    Raises `fault`, which begins with `where`, for an address that is none, a server that does not answer or refuses, a
    file whose digest differs, and where FTCLI_OFFLINE is set; RunError if the file cannot be written.
    """
    if not _is_url(url):
        raise error_type(f"{location}: {url!r} is no address of a file; give one that begins with https:// or http://")
    algorithm, _, expected = digest.lower().partition(":")
    path = target or _cache_path(url, expected)
    actual = _hash_if_exists(path, algorithm)
    if actual and actual.startswith(expected):
        return path
    mismatch = f"its {_ALGORITHM_NAMES[algorithm]} should begin with {expected} and is {{}}"
    if is_offline():
        raise error_type(
            f"{location}: {_describe_offline_error(url, path, mismatch.format(actual) if actual else None)}"
        )
    if actual:
        reporter.warn(f"{location}: {path} is not the file at {url}: {mismatch.format(actual)}; it is downloaded anew")
    with _open_part(path, reporter) as (part, file):
        actual = _hash_if_exists(path, algorithm)  # another process may have brought it while this one waited
        if actual and actual.startswith(expected):
            return path
        try:
            actual = _download(url, algorithm, part, file, path, reporter)
        except DownloadError as error:
            remedy = (
                "check the address, or get it elsewhere" if error.is_missing else "download it where that is possible"
            )
            raise error_type(
                f"{location}: {url} cannot be downloaded ({error}); {remedy} and put it at {path}"
            ) from error
        if not actual.startswith(expected):
            part.unlink()
            etag_path(part).unlink(missing_ok=True)
            raise error_type(
                f"{location}: what came from {url} is not the file that was asked for: {mismatch.format(actual)}; try again, "
                "or on another network"
            )
        files.commit_file(part, path)
    etag_path(part).unlink(missing_ok=True)
    return path


def _describe_offline_error(url: str, path: Path, mismatch: str | None) -> str:
    """What offline there is to do for a file that is not there, or is another."""
    if mismatch:
        return (
            f"{path} is not the file at {url}: {mismatch}; FTCLI_OFFLINE is set: download it where that is possible and "
            "put it there, or unset FTCLI_OFFLINE"
        )
    return (
        f"{url} is needed and FTCLI_OFFLINE is set; download it where that is possible and put it at {path}, or unset "
        "FTCLI_OFFLINE"
    )


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and _URL_PATTERN.match(url) is not None
        )
    except ValueError:  # brackets that do not close, a port that is no number
        return False


def _download(url: str, algorithm: str, part: Path, file: FileIO, path: Path, reporter: Reporter) -> str:
    """Download into the part, or what it lacks, and give its digest."""
    size = file.seek(0, 2)
    reporter.info(f"downloading {url} to {path}" + (f", from {format_size(size)} on" if size else ""))
    ResumableDownload(url, file, part, reporter).run()
    os.fsync(file.fileno())
    file.seek(0)  # and not opened again: closing it a first time would end the lock
    return hashlib.file_digest(file, algorithm).hexdigest()


def _cache_path(url: str, expected: str) -> Path:
    """The file's place in the cache: its digest's beginning, so that two of one name do not meet, and its name."""
    name = re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)
    return get_cache_dir() / "downloads" / f"{expected[:16]}-{name[-100:] or 'file'}"


def _hash_if_exists(path: Path, algorithm: str) -> str | None:
    """The digest of a file, None if there is none."""
    try:
        return files.hash_file(path, algorithm)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check what is there and its permissions") from error


@contextmanager
def _open_part(path: Path, reporter: Reporter) -> Iterator[tuple[Path, FileIO]]:
    """The part of a download as its only writer, waiting for another process if need be; an empty one is removed."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(part, reporter)
    except OSError as error:
        raise RunError(files.describe_write_error(part, 0, error)) from error
    with file:
        try:
            yield part, file
        finally:
            if file.seek(0, 2) == 0:
                part.unlink(missing_ok=True)


def _open_locked(part: Path, reporter: Reporter) -> FileIO:
    while True:
        file = part.open("a+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            reporter.info(f"another ftcli is downloading {part.name.removesuffix('.part')}; waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX)
        # Whoever held it before may have finished and renamed it, or removed it: then this is no part any more.
        if part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
