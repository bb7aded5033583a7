"""Safe extraction of archives: no file outside the folder, no links or devices, no more bytes than expected.

torchvision's own extraction allows members outside the folder (https://github.com/pytorch/vision/issues/9517).
"""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from ftcli.errors import DataError
from ftcli.results import Progress, Reporter

_BLOCK_SIZE = 2**20
_MIN_MEMBER_SIZE = 512  # bytes that an empty member counts, so that the size limit also limits their number

# Raised by the standard library for an archive that is truncated, corrupt, encrypted or of an unknown compression.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    kind: Literal["file", "folder", "link", "device"]
    open: Callable[[], IO[bytes] | None]


def unpack_archive(
    archive: Path, name: str, folder: Path, max_bytes: int, message_prefix: str, reporter: Reporter
) -> None:
    """Unpack a zip or tar archive (also with gzip, bzip2 or xz), or a single file with gzip, into a folder.

    `name` is the published name of the archive. Raises DataError for a member outside the folder, a link or device,
    more than `max_bytes` in all, and a corrupt archive; it names the member. Files extracted before that stay.
    """
    archive_size = archive.stat().st_size
    last_member, remaining = "", max_bytes
    with archive.open("rb") as raw:
        try:
            for member in _read_members(raw, name):
                last_member = member.name
                _check_member(member, archive, message_prefix)
                remaining = _extract_member(member, folder / member.name, remaining - _MIN_MEMBER_SIZE)
                if remaining < 0:
                    raise DataError(
                        f"{message_prefix}: {archive} unpacks to more than {max_bytes / 1e6:.0f} MB, at member "
                        f"{last_member!r}, and is not used; report it to the publisher"
                    )
                reporter.update_progress(
                    Progress(f"unpack {archive.name}", min(raw.tell(), archive_size - 1), archive_size, unit="bytes")
                )
        except _ARCHIVE_ERRORS as error:
            position = f"at member {last_member!r}" if last_member else "from the start"
            reason = "it needs a password" if type(error) is RuntimeError else " ".join(str(error).split())
            raise DataError(
                f"{message_prefix}: {archive} is corrupt {position} ({reason or type(error).__name__}); report it to "
                "the publisher"
            ) from error
    reporter.update_progress(Progress(f"unpack {archive.name}", archive_size, archive_size, unit="bytes"))


def _read_members(raw: IO[bytes], name: str) -> Iterator[_Member]:
    if name.endswith(".gz") and not name.endswith(".tar.gz"):
        return iter([_Member(name.removesuffix(".gz"), "file", lambda: cast(IO[bytes], gzip.open(raw)))])
    return _read_zip(raw) if zipfile.is_zipfile(raw) else _read_tar(raw)


def _read_zip(raw: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            file_type = stat.S_IFMT(info.external_attr >> 16)
            member_kind: Literal["file", "folder", "link", "device"] = (
                "file" if file_type in (0, stat.S_IFREG) else "device"
            )
            if info.is_dir():
                member_kind = "folder"
            elif file_type == stat.S_IFLNK:
                member_kind = "link"
            yield _Member(info.filename, member_kind, partial(archive.open, info))


def _read_tar(raw: IO[bytes]) -> Iterator[_Member]:
    raw.seek(0)
    with tarfile.open(fileobj=raw, mode="r:*") as archive:
        for info in archive:
            member_kind: Literal["file", "folder", "link", "device"] = "file" if info.isreg() else "device"
            if info.isdir():
                member_kind = "folder"
            elif info.issym() or info.islnk():
                member_kind = "link"
            yield _Member(info.name, member_kind, partial(archive.extractfile, info))
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK_SIZE):
            pass  # the checksum of the compressed data is at the end


def _check_member(member: _Member, archive: Path, message_prefix: str) -> None:
    path = PurePosixPath(member.name)
    is_outside = path.is_absolute() or ".." in path.parts or "\0" in member.name
    if is_outside or member.kind in ("link", "device"):
        reason = "is outside its folder" if is_outside else f"is a {member.kind}"
        raise DataError(
            f"{message_prefix}: {archive} contains {member.name!r}, which {reason}, and is not used; report it to the "
            "publisher"
        )


def _extract_member(member: _Member, target: Path, remaining: int) -> int:
    """Extract a member of at most `remaining` bytes. Return the bytes that remain: below 0 if it is larger."""
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return remaining
    target.parent.mkdir(parents=True, exist_ok=True)
    content = member.open()
    assert content is not None  # a regular file
    with content, target.open("wb") as file:
        while remaining >= 0 and (block := content.read(_BLOCK_SIZE)):
            remaining -= len(block)
            file.write(block)
    return remaining
