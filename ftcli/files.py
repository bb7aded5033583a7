"""Atomic writes, output path checks, digests and locks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from filelock import FileLock, Timeout

from ftcli.errors import RecipeError, RunError

_LOCK_TIMEOUT = 0.2
"""Seconds to wait for a lock, because `is_locked` of another process holds it for a moment."""

_File = TypeVar("_File", TextIO, BinaryIO)


def atomic_write(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file atomically: it has the old or the new content, also after a kill or a power failure.

    The content is written to a temporary file, flushed to disk and renamed, and the folder is flushed.
    Raises RunError if the disk is full or the folder cannot be written; the old file is then unchanged.
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
    """Open a UTF-8 text file that replaces `path` when the context ends without an error.

    Raises RunError as `atomic_write` does.
    """
    with _open_temporary(
        path, lambda file: file.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    ) as f:
        yield f


@contextmanager
def atomic_open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the context ends without an error."""
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


def check_output_path(path: Path, option: str, suffixes: Sequence[str] = ()) -> None:
    """Raise RecipeError unless a path is free or a regular file, and ends in one of the suffixes (if there are any).

    A folder, link or device would be replaced by the file.
    """
    suffix = path.suffix if ".pt" in suffixes else path.suffix.lower()  # checkpoints are recognized by lower case
    if suffixes and suffix not in suffixes:
        raise RecipeError(f"{option}: {path} does not end in {' or '.join(suffixes)}; give a path that does")
    if path.name in ("", "..") or (os.path.lexists(path) and (path.is_symlink() or not path.is_file())):
        raise RecipeError(f"{option}: {path} is a folder, link or device; give the name of a file")


def check_writable(path: Path, option: str, suffixes: Sequence[str] = ()) -> None:
    """Raise RecipeError as `check_output_path` does, and if the folder is missing or not writable."""
    check_output_path(path, option, suffixes)
    if not path.parent.exists():
        raise RecipeError(f"{option}: the folder {path.parent} does not exist; create it, or give another path")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RecipeError(
            f"{option}: the folder {path.parent} cannot be written ({error.strerror}); give a path in a writable folder"
        ) from error


def is_same_file(path: Path, other: Path) -> bool:
    """Return whether two paths refer to the same file, which need not exist; links are followed."""
    return os.path.realpath(path) == os.path.realpath(other) or (
        path.exists() and other.exists() and path.samefile(other)
    )


def make_dir(directory: Path) -> None:
    """Create a folder and its parents. Raises RecipeError if it cannot be created or written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RecipeError(
            f"{directory}: cannot be written ({error.strerror}); give a writable folder with --out"
        ) from error


def commit_dir(temporary: Path, final: Path) -> None:
    """Rename a complete temporary folder to its final name, atomically."""
    temporary.rename(final)
    _fsync_dir(final.parent)


def commit_file(temporary: Path, final: Path) -> None:
    """Rename a complete, flushed file to its final name, atomically. Raises RunError if it cannot be renamed."""
    try:
        temporary.replace(final)
        _fsync_dir(final.parent)
    except OSError as error:
        raise RunError(describe_write_error(final, 0, error)) from error


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal; `algorithm` is sha256, sha1 or md5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def try_lock(directory: Path) -> FileLock | str:
    """Lock a directory, which is created if it does not exist, until the lock is released or the process ends.

    Return the lock, or the process ID of its owner. Raises OSError if the directory cannot be written.
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
    """Return the message for a file that could not be written; `num_bytes` is its size, 0 if unknown."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        needed = f"{num_bytes / 1e6:.1f} MB needed, " if num_bytes else ""
        return (
            f"{path}: the disk is full: {needed}{free / 1e6:.1f} MB free; free some space (files saved before are "
            "intact)"
        )
    return f"{path}: cannot be written ({error.strerror}); check the folder and its permissions"
