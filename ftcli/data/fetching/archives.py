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

_BLOCK = 2**20
_ENTRY = 512  # bytes that every member counts at least, so that there cannot be millions of empty ones

# What the standard library raises over an archive that is cut, damaged, encrypted or packed in a way it does not know.
_BROKEN = (
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


def unpack_archive(archive: Path, folder: Path, most: int, where: str, reporter: Reporter) -> None:
    """Unpack a zip or tar archive (also gzip, bzip2, xz) into a folder; only plain files and folders are made.

    Raises DataError that begins with `where` for a member that leads out of the folder, a link or a device, for more
    than `most` bytes in all, and for an archive that is broken; it names the member. Files made before that stay.
    """
    length = archive.stat().st_size
    last, left = "", most
    with archive.open("rb") as raw:
        try:
            for member in _read_zip(raw) if zipfile.is_zipfile(raw) else _read_tar(raw):
                last = member.name
                _check(member, archive, where)
                left = _write(member, folder / member.name, left - _ENTRY)
                if left < 0:
                    raise DataError(
                        f"{where}: {archive} unpacks to more than {most / 1e6:.0f} MB, at member {last!r}, and is not "
                        "used; tell its publisher"
                    )
                reporter.advance(Progress(f"unpack {archive.name}", min(raw.tell(), length - 1), length, unit="bytes"))
        except _BROKEN as error:
            place = f"at member {last!r}" if last else "from the beginning"
            why = "it asks for a password" if type(error) is RuntimeError else " ".join(str(error).split())
            raise DataError(
                f"{where}: {archive} is broken {place} ({why or type(error).__name__}); tell its publisher"
            ) from error
    reporter.advance(Progress(f"unpack {archive.name}", length, length, unit="bytes"))


def _read_zip(raw: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            known: Literal["file", "folder", "link", "device"] = "file" if kind in (0, stat.S_IFREG) else "device"
            if info.is_dir():
                known = "folder"
            elif kind == stat.S_IFLNK:
                known = "link"
            yield _Member(info.filename, known, partial(archive.open, info))


def _read_tar(raw: IO[bytes]) -> Iterator[_Member]:
    raw.seek(0)
    with tarfile.open(fileobj=raw, mode="r:*") as archive:
        for info in archive:
            known: Literal["file", "folder", "link", "device"] = "file" if info.isreg() else "device"
            if info.isdir():
                known = "folder"
            elif info.issym() or info.islnk():
                known = "link"
            yield _Member(info.name, known, partial(archive.extractfile, info))
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK):
            pass  # the checksum of what was compressed stands behind everything else


def _check(member: _Member, archive: Path, where: str) -> None:
    path = PurePosixPath(member.name)
    outside = path.is_absolute() or ".." in path.parts or "\0" in member.name
    if outside or member.kind in ("link", "device"):
        what = "leads out of its folder" if outside else f"is a {member.kind}"
        raise DataError(f"{where}: {archive} holds {member.name!r}, which {what}, and is not used; tell its publisher")


def _write(member: _Member, target: Path, left: int) -> int:
    """Make a member's file or folder with at most `left` bytes, and give what is left of them; below 0: too little."""
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return left
    target.parent.mkdir(parents=True, exist_ok=True)
    content = member.open()
    assert content is not None  # a plain file
    with content, target.open("wb") as file:
        while left >= 0 and (block := content.read(_BLOCK)):
            left -= len(block)
            file.write(block)
    return left
