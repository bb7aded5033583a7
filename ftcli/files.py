"""Files that are there whole or not at all: atomic writes, digests and locks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from filelock import FileLock, Timeout

from ftcli.errors import RecipeError, RunError

_LOCK_TIMEOUT = 0.2
"""Seconds to wait for a lock, because `is_locked` of another process holds it for a moment."""

_File = TypeVar("_File", TextIO, BinaryIO)


def atomic_write(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file so that a reader, a kill or a power cut sees the old content or the new one, never a mix.

    The content goes to a file beside it, is flushed to the disk and renamed; the folder is flushed too.
    Raises RunError if the disk is full or the folder cannot be written; the old file then stays.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_dir(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(describe_write_error(path, len(data), error)) from error


@contextmanager
def atomic_open(path: Path) -> Iterator[TextIO]:
    """A text file, UTF-8, that is written little by little and is there when the context ends well, whole, or not at
    all: after an error or a kill the old file stands. Raises RunError as `atomic_write` does."""
    with _open_temporary(
        path, lambda file: file.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    ) as f:
        yield f


@contextmanager
def atomic_open_binary(path: Path) -> Iterator[BinaryIO]:
    """The same for a file of bytes."""
    with _open_temporary(path, lambda file: file.open("wb")) as f:
        yield f


@contextmanager
def _open_temporary(path: Path, open_file: Callable[[Path], _File]) -> Iterator[_File]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open_file(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        commit_file(temporary, path)
    except OSError as error:
        raise RunError(describe_write_error(path, 0, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output_path(path: Path, option: str) -> None:
    """Raise RecipeError that begins with `option` for a place that is taken by what is no plain file: a folder, a
    link, a device. Whatever is written gets its name at the end, in their stead."""
    if path.name in ("", "..") or (os.path.lexists(path) and (path.is_symlink() or not path.is_file())):
        raise RecipeError(f"{option}: {path} is a folder, link or device; give the name of a file")


def check_writable(path: Path, option: str) -> None:
    """Raise RecipeError that begins with `option` for a place where no file can be written: one that is taken, or in a
    folder that is not there or may not be written to."""
    check_output_path(path, option)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RecipeError(
            f"{option}: the folder {path.parent} cannot be written ({error.strerror}); give a place that you may write "
            "to"
        ) from error


def check_png_path(path: Path, option: str) -> None:
    """Raise a RecipeError that begins with `option` unless a PNG file can be written at `path`."""
    if path.suffix.lower() != ".png":
        raise RecipeError(f"{option}: {path} does not end in .png, the one format that is drawn; give such a name")
    if not path.parent.is_dir():
        raise RecipeError(f"{option}: the folder {path.parent} is not there; make it, or give another place")
    check_writable(path, option)


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, through links too; it need not be there."""
    return os.path.realpath(path) == os.path.realpath(other) or (
        path.exists() and other.exists() and path.samefile(other)
    )


def make_dir(directory: Path) -> None:
    """Make a folder and those above it. Raises RecipeError if it cannot be made or written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RecipeError(
            f"{directory}: cannot be written ({error.strerror}); give a folder that you may write to, with --out"
        ) from error


def commit_dir(temporary: Path, final: Path) -> None:
    """Give a folder that was made whole under another name beside it its final name, in one step."""
    temporary.rename(final)
    _fsync_dir(final.parent)


def commit_file(temporary: Path, final: Path) -> None:
    """Give a file that is whole and flushed its final name, in one step. Raises RunError if it cannot have it."""
    try:
        temporary.replace(final)
        _fsync_dir(final.parent)
    except OSError as error:
        raise RunError(describe_write_error(final, 0, error)) from error


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes in hexadecimal; `kind` is sha256, sha1 or md5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def try_lock(directory: Path) -> FileLock | str:
    """Lock a directory, which is created if it does not exist, until the lock is released or the process ends.

    Return the lock, or the process number of its owner. Raises OSError if the directory cannot be written.
    """
    path = directory / ".lock"
    lock = FileLock(path, thread_local=False, timeout=_LOCK_TIMEOUT, poll_interval=_LOCK_TIMEOUT / 10)
    try:
        lock.acquire()
    except Timeout:
        return _read_owner(path)
    try:
        path.write_text(str(os.getpid()), encoding="ascii")
    except OSError:
        lock.release()
        raise
    return lock


@contextmanager
def lock_dir(directory: Path) -> Iterator[None]:
    """Lock a directory while the context lasts; the lock ends with the process.

    Raises RecipeError if another process holds the lock, RunError if the lock file cannot be written.
    """
    try:
        lock = try_lock(directory)
    except OSError as error:
        raise RunError(describe_write_error(directory / ".lock", 1, error)) from error
    if isinstance(lock, str):
        raise RecipeError(
            f"{directory}: is in use by another ftcli (process {lock}); wait until it ends, or give another --out"
        )
    try:
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Return whether a process holds the lock of a directory."""
    path = directory / ".lock"
    if not path.is_file():
        return False
    try:
        with FileLock(path, thread_local=False, timeout=0):
            return False
    except (Timeout, PermissionError):  # another user's lock file counts as locked
        return True


def _read_owner(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


def _fsync_dir(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_write_error(path: Path, num_bytes: int, error: OSError) -> str:
    """The sentence for a file that could not be written, by `size` bytes (0: not known)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        needed = f"{num_bytes / 1e6:.1f} MB are needed and " if num_bytes else ""
        return (
            f"{path}: the disk is full: {needed}{free / 1e6:.1f} MB are free; make room; what was saved before is whole"
        )
    return f"{path}: cannot be written ({error.strerror}); check the folder and its permissions"
