from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from ftcli.datasets.archives import unpack_archive
from ftcli.errors import DataError
from tests.datasets.conftest import RecordingReporter, pack_tar, pack_zip

MEMBERS = {"a/1.txt": b"one" * 1000, "a/b/2.txt": b"", "3.txt": os.urandom(300_000)}


def unpack(content: bytes, folder: Path, max_bytes: int = 10**7, name: str = "archive") -> RecordingReporter:
    archive = folder / "archive"
    archive.write_bytes(content)
    reporter = RecordingReporter()
    unpack_archive(archive, name, folder / "unpacked", max_bytes, "here", reporter)
    return reporter


def unpack_error(content: bytes, folder: Path, max_bytes: int = 10**7, name: str = "archive") -> str:
    with pytest.raises(DataError) as caught:
        unpack(content, folder, max_bytes, name)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_unpack_archive_formats(tmp_path: Path, kind: str) -> None:
    reporter = unpack(pack_zip(MEMBERS) if kind == "zip" else pack_tar(MEMBERS, kind), tmp_path)
    unpacked = tmp_path / "unpacked"
    assert {path.relative_to(unpacked).as_posix(): path.read_bytes() for path in unpacked.rglob("*.txt")} == MEMBERS
    length = (tmp_path / "archive").stat().st_size
    last = reporter.reported[-1]
    assert (last.task, last.done, last.total, last.unit) == ("unpack archive", length, length, "bytes")
    assert all(progress.done < length for progress in reporter.reported[:-1])


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", ".."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpack_archive_rejects_path_traversal(tmp_path: Path, name: str, kind: str) -> None:
    members = {"in.txt": b"x", name: b"evil"}
    assert unpack_error(pack_zip(members) if kind == "zip" else pack_tar(members), tmp_path) == (
        f"here: {tmp_path}/archive contains {name!r}, which is outside its folder, and is not used; report it to the "
        "publisher"
    )
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["in.txt"]
    assert not Path("/tmp/out.txt").exists()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
    ],
)
def test_unpack_archive_rejects_tar_links_and_devices(tmp_path: Path, kind: bytes, what: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert unpack_error(file.getvalue(), tmp_path) == (
        f"here: {tmp_path}/archive contains 'odd', which is a {what}, and is not used; report it to the publisher"
    )
    assert not (tmp_path / "unpacked/odd").exists()


@pytest.mark.parametrize(("kind", "what"), [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "device")])
def test_unpack_archive_rejects_zip_links_and_devices(tmp_path: Path, kind: int, what: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("odd")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert f"contains 'odd', which is a {what}, and is not used" in unpack_error(file.getvalue(), tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpack_archive_rejects_bomb(tmp_path: Path, kind: str) -> None:
    members = {"small": b"x", "large": bytes(30_000_000)}
    assert unpack_error(pack_zip(members) if kind == "zip" else pack_tar(members), tmp_path, 5_000_000) == (
        f"here: {tmp_path}/archive unpacks to more than 5 MB, at member 'large', and is not used; report it to the "
        "publisher"
    )
    assert (tmp_path / "unpacked/large").stat().st_size < 7_000_000


def test_unpack_archive_counts_empty_members(tmp_path: Path) -> None:
    message = unpack_error(pack_tar(dict.fromkeys(map(str, range(300)), b"")), tmp_path, 10**5)
    assert "at member '195', and is not used" in message


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:xz"])
def test_unpack_archive_names_corrupt_member(tmp_path: Path, kind: str) -> None:
    content = bytearray(pack_zip(MEMBERS) if kind == "zip" else pack_tar(MEMBERS, kind))
    if kind == "w":
        del content[-150_000:]
    else:
        content[len(content) // 2] ^= 0xFF
    message = unpack_error(bytes(content), tmp_path)
    assert message.startswith(f"here: {tmp_path}/archive is corrupt at member '3.txt' (")
    assert message.endswith("); report it to the publisher")
    assert "\n" not in message


def test_unpack_archive_not_an_archive(tmp_path: Path) -> None:
    assert unpack_error(b"<html>" * 1000, tmp_path) == (
        f"here: {tmp_path}/archive is corrupt from the start (file could not be opened successfully: - method gz: "
        "ReadError('not a gzip file') - method bz2: ReadError('not a bzip2 file') - method xz: ReadError('not an lzma "
        "file') - method tar: ReadError('invalid header')); report it to the publisher"
    )


def test_unpack_archive_encrypted(tmp_path: Path) -> None:
    content = bytearray(pack_zip({"a": b"x"}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    assert unpack_error(bytes(content), tmp_path) == (
        f"here: {tmp_path}/archive is corrupt at member 'a' (it needs a password); report it to the publisher"
    )


def test_unpack_archive_non_utf8_names(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("caf\xe9/1.txt"))
    unpack(file.getvalue(), tmp_path)
    assert os.listdir(os.fsencode(tmp_path / "unpacked")) == [b"caf\xe9"]  # noqa: PTH208 - the bytes of the name
    content = pack_zip({"caf\xe9.txt": b"x"}).replace("\xe9".encode(), b"\xff\xfe")
    assert unpack_error(content, tmp_path).startswith(
        f"here: {tmp_path}/archive is corrupt from the start ('utf-8' codec"
    )


def test_unpack_archive_gzip_file(tmp_path: Path) -> None:
    content = gzip.compress(MEMBERS["3.txt"])
    unpack(content, tmp_path, name="3.txt.gz")
    assert (tmp_path / "unpacked/3.txt").read_bytes() == MEMBERS["3.txt"]
    assert unpack_error(content, tmp_path, 200_000, "3.txt.gz").startswith(f"here: {tmp_path}/archive unpacks to more")
    assert "is corrupt at member '3.txt' (" in unpack_error(content[:-20], tmp_path, name="3.txt.gz")
    assert "is corrupt at member '3.txt' (" in unpack_error(b"<html>", tmp_path, name="3.txt.gz")
