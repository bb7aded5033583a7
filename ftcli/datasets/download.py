"""The folder of a known data set: whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ftcli.data.dataset import count_images
from ftcli.datasets.builder import DatasetBuilder
from ftcli.datasets.registry import DATASETS, DatasetSpec, RemoteFile
from ftcli.downloads import download_file
from ftcli.errors import DataError, RunError, suggest
from ftcli.files import commit_dir
from ftcli.results import DownloadResult, Reporter


def download_dataset(name: str, root: Path, reporter: Reporter) -> DownloadResult:
    """Make a known data set at `root`, whole or not at all, and count its images by split and class.

    The same name always gives the same folders. Its files are downloaded once and checked against their digests; a
    system package that has them is used instead. Raises DataError for an unknown name, a root that exists and is not
    empty, files that cannot be had or are others, an archive that is broken or not to be trusted, or a Python package
    that is missing or incomplete; RunError where it cannot be written.
    """
    if name not in DATASETS:
        raise DataError(f"download: {name!r} is no known data set; {suggest(name, DATASETS)}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root}: is there already and not empty; remove it, or give another folder")
    spec = DATASETS[name]
    files = tuple(_get_file(remote, f"download: {name}", reporter) for remote in spec.files)
    temp_folder = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        _remove_leftovers(root)
        temp_folder.mkdir(parents=True)
        _build_dataset(spec, DatasetBuilder(name, temp_folder, files, spec.max_unpacked_bytes, reporter))
        splits = count_images(temp_folder, f"download: {name}")
        commit_dir(temp_folder, root)
    except OSError as error:
        raise RunError(f"{root}: cannot be made ({error.strerror}); make room, or give another folder") from error
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)
    return DownloadResult(name, root, sum(sum(classes.values()) for classes in splits.values()), splits)


def _get_file(remote: RemoteFile, message_prefix: str, reporter: Reporter) -> Path:
    if remote.installed is not None and remote.installed.path.is_file():
        if remote.installed.is_valid():
            return remote.installed.path
        reporter.warn(f"{message_prefix}: {remote.installed.path} is not the file that is known and is passed over")
    return download_file(remote.url, remote.digest, message_prefix, reporter, DataError)


def _build_dataset(spec: DatasetSpec, builder: DatasetBuilder) -> None:
    try:
        spec.build(builder)
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        if builder.unpack_dir not in missing.parents:
            raise
        archives = " and ".join(str(path) for path in builder.files)
        raise DataError(
            f"{builder.message_prefix}: there is no {missing.relative_to(builder.unpack_dir)} in {archives}; tell its publisher"
        ) from error
    shutil.rmtree(builder.unpack_dir, ignore_errors=True)
    (builder.folder / "SOURCE.txt").write_text(spec.citation, encoding="utf-8")


def _remove_leftovers(root: Path) -> None:
    """Remove what killed processes left of making this root, and of this process's number."""
    if not root.parent.is_dir():
        return
    for entry in root.parent.iterdir():
        stem, _, pid = entry.name.removesuffix(".unfinished").rpartition(".")
        is_leftover = entry.name.endswith(".unfinished") and stem == f".{root.name}" and pid.isdecimal()
        if is_leftover and (int(pid) == os.getpid() or not _is_running(int(pid))):
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
