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

from ftcli import storage
from ftcli.caching.places import find_cache
from ftcli.downloads.transfer import Transfer, TransferError, name_tag
from ftcli.errors import FtcliError, RunError
from ftcli.results import Reporter, tell_size

_NAMES = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}
_PLAIN = re.compile(r"[!-~]+\Z")  # what an address may hold: ASCII, and neither spaces nor control characters


def is_offline() -> bool:
    """Whether the user forbids connections: FTCLI_OFFLINE is 1, true or yes."""
    return os.environ.get("FTCLI_OFFLINE", "").strip().lower() in ("1", "true", "yes")


def fetch_file(
    url: str, digest: str, where: str, reporter: Reporter, fault: type[FtcliError], target: Path | None = None
) -> Path:
    """The file at `url` (http or https), whose digest is checked on every use.

    `digest` is "sha256:<hex>", "sha1:<hex>" or "md5:<hex>", at least the first 8 digits. The file is at `target`, else
    in the cache: below $FTCLI_CACHE, $XDG_CACHE_HOME/ftcli or ~/.cache/ftcli, the first that is set. If it is not there
    or is another, which the reporter is told, it is downloaded into <name>.part beside it, which a later call goes on
    with, and takes its name when it is whole and right. Of several processes one downloads and the others wait for it.

    Raises `fault`, which begins with `where`, for an address that is none, a server that does not answer or refuses, a
    file whose digest differs, and where FTCLI_OFFLINE is set; RunError if the file cannot be written.
    """
    if not _is_address(url):
        raise fault(f"{where}: {url!r} is no address of a file; give one that begins with https:// or http://")
    kind, _, wanted = digest.lower().partition(":")
    path = target or _place_download(url, wanted)
    found = _measure(path, kind)
    if found and found.startswith(wanted):
        return path
    other = f"its {_NAMES[kind]} should begin with {wanted} and is {{}}"
    if is_offline():
        raise fault(f"{where}: {_explain_absence(url, path, other.format(found) if found else None)}")
    if found:
        reporter.warn(f"{where}: {path} is not the file at {url}: {other.format(found)}; it is downloaded anew")
    with _hold_part(path, reporter) as (part, file):
        found = _measure(path, kind)  # another process may have brought it while this one waited
        if found and found.startswith(wanted):
            return path
        try:
            found = _download(url, kind, part, file, path, reporter)
        except TransferError as error:
            remedy = "check the address, or get it elsewhere" if error.missing else "download it where that is possible"
            raise fault(f"{where}: {url} cannot be downloaded ({error}); {remedy} and put it at {path}") from error
        if not found.startswith(wanted):
            part.unlink()
            name_tag(part).unlink(missing_ok=True)
            raise fault(
                f"{where}: what came from {url} is not the file that was asked for: {other.format(found)}; try again, "
                "or on another network"
            )
        storage.publish_file(part, path)
    name_tag(part).unlink(missing_ok=True)
    return path


def _explain_absence(url: str, path: Path, other: str | None) -> str:
    """What offline there is to do for a file that is not there, or is another."""
    if other:
        return (
            f"{path} is not the file at {url}: {other}; FTCLI_OFFLINE is set: download it where that is possible and "
            "put it there, or unset FTCLI_OFFLINE"
        )
    return (
        f"{url} is needed and FTCLI_OFFLINE is set; download it where that is possible and put it at {path}, or unset "
        "FTCLI_OFFLINE"
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and _PLAIN.match(url) is not None
        )
    except ValueError:  # brackets that do not close, a port that is no number
        return False


def _download(url: str, kind: str, part: Path, file: FileIO, path: Path, reporter: Reporter) -> str:
    """Download into the part, or what it lacks, and give its digest."""
    size = file.seek(0, 2)
    reporter.say(f"downloading {url} to {path}" + (f", from {tell_size(size)} on" if size else ""))
    Transfer(url, file, part, reporter).run()
    os.fsync(file.fileno())
    file.seek(0)  # and not opened again: closing it a first time would end the lock
    return hashlib.file_digest(file, kind).hexdigest()


def _place_download(url: str, wanted: str) -> Path:
    """The file's place in the cache: its digest's beginning, so that two of one name do not meet, and its name."""
    name = re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)
    return find_cache() / "downloads" / f"{wanted[:16]}-{name[-100:] or 'file'}"


def _measure(path: Path, kind: str) -> str | None:
    """The digest of a file, None if there is none."""
    try:
        return storage.digest_file(path, kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check what is there and its permissions") from error


@contextmanager
def _hold_part(path: Path, reporter: Reporter) -> Iterator[tuple[Path, FileIO]]:
    """The part of a download as its only writer, waiting for another process if need be; an empty one is removed."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_part(part, reporter)
    except OSError as error:
        raise RunError(storage.explain_failure(part, 0, error)) from error
    with file:
        try:
            yield part, file
        finally:
            if file.seek(0, 2) == 0:
                part.unlink(missing_ok=True)


def _lock_part(part: Path, reporter: Reporter) -> FileIO:
    while True:
        file = part.open("a+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            reporter.say(f"another ftcli is downloading {part.name.removesuffix('.part')}; waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX)
        # Whoever held it before may have finished and renamed it, or removed it: then this is no part any more.
        if part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
