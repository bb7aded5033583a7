"""Archives of others, unpacked with care: nothing outside the folder, nothing but files, and no more than expected."""

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
from typing import IO, Literal

from ftcli.errors import DataError
from ftcli.results import Progress, Reporter

_BLOCK_SIZE = 2**20
_MIN_MEMBER_SIZE = 512  # bytes that every member counts at least, so that there cannot be millions of empty ones

# What the standard library raises over an archive that is cut, damaged, encrypted or packed in a way it does not know.
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


def unpack_archive(archive: Path, folder: Path, max_bytes: int, message_prefix: str, reporter: Reporter) -> None:
    """Unpack a zip or tar archive (also gzip, bzip2, xz) into a folder; only plain files and folders are made.

    Raises DataError that begins with `where` for a member that leads out of the folder, a link or a device, for more
    than `most` bytes in all, and for an archive that is broken; it names the member. Files made before that stay.
    """
    archive_size = archive.stat().st_size
    last_member, remaining = "", max_bytes
    with archive.open("rb") as raw:
        try:
            for member in _read_zip(raw) if zipfile.is_zipfile(raw) else _read_tar(raw):
                last_member = member.name
                _check_member(member, archive, message_prefix)
                remaining = _extract_member(member, folder / member.name, remaining - _MIN_MEMBER_SIZE)
                if remaining < 0:
                    raise DataError(
                        f"{message_prefix}: {archive} unpacks to more than {max_bytes / 1e6:.0f} MB, at member {last_member!r}, and is not "
                        "used; tell its publisher"
                    )
                reporter.update_progress(
                    Progress(f"unpack {archive.name}", min(raw.tell(), archive_size - 1), archive_size, unit="bytes")
                )
        except _ARCHIVE_ERRORS as error:
            position = f"at member {last_member!r}" if last_member else "from the beginning"
            reason = "it asks for a password" if type(error) is RuntimeError else " ".join(str(error).split())
            raise DataError(
                f"{message_prefix}: {archive} is broken {position} ({reason or type(error).__name__}); tell its publisher"
            ) from error
    reporter.update_progress(Progress(f"unpack {archive.name}", archive_size, archive_size, unit="bytes"))


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
            pass  # the checksum of what was compressed stands behind everything else


def _check_member(member: _Member, archive: Path, message_prefix: str) -> None:
    path = PurePosixPath(member.name)
    is_outside = path.is_absolute() or ".." in path.parts or "\0" in member.name
    if is_outside or member.kind in ("link", "device"):
        reason = "leads out of its folder" if is_outside else f"is a {member.kind}"
        raise DataError(
            f"{message_prefix}: {archive} holds {member.name!r}, which {reason}, and is not used; tell its publisher"
        )


def _extract_member(member: _Member, target: Path, remaining: int) -> int:
    """Make a member's file or folder with at most `left` bytes, and give what is left of them; below 0: too little."""
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return remaining
    target.parent.mkdir(parents=True, exist_ok=True)
    content = member.open()
    assert content is not None  # a plain file
    with content, target.open("wb") as file:
        while remaining >= 0 and (block := content.read(_BLOCK_SIZE)):
            remaining -= len(block)
            file.write(block)
    return remaining
