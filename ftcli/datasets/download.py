"""Download of known data sets into folders that recipes can use."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ftcli.data.dataset import count_images
from ftcli.datasets.builders import DatasetBuilder
from ftcli.datasets.citations import CITATIONS
from ftcli.datasets.registry import DATASETS, DatasetSpec, RemoteFile
from ftcli.downloads import download_file
from ftcli.errors import DataError, RunError, suggest
from ftcli.files import commit_dir
from ftcli.results import DownloadResult, Reporter

logger = logging.getLogger(__name__)


def download_dataset(name: str, root: Path, reporter: Reporter) -> DownloadResult:
    """Create the folder of a known data set completely or not at all. Return its numbers of images.

    Its files are downloaded once, or taken from a system package, and their digests are checked. Raises DataError for
    an unknown name, a root that is not empty, files that cannot be downloaded or have another digest, a corrupt or
    unsafe archive, and a missing Python package; RunError if the folder cannot be written.
    """
    if name not in DATASETS:
        raise DataError(f"download: unknown data set {name!r}; {suggest(name, DATASETS)}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"download: {name}: {root} exists and is not empty; remove it, or give another folder")
    spec = DATASETS[name]
    files = {remote.name: _get_file(remote, f"download: {name}", reporter) for remote in spec.files}
    temp_folder = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        _remove_leftovers(root)
        temp_folder.mkdir(parents=True)
        _build_dataset(spec, DatasetBuilder(name, temp_folder, files, spec.max_unpacked_bytes, reporter))
        splits = count_images(temp_folder, f"download: {name}")
        commit_dir(temp_folder, root)
    except OSError as error:
        raise RunError(
            f"download: {name}: {root} cannot be created ({error.strerror}); free disk space, or give another folder"
        ) from error
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)
    return DownloadResult(name, root, sum(sum(classes.values()) for classes in splits.values()), splits)


def _get_file(remote: RemoteFile, message_prefix: str, reporter: Reporter) -> Path:
    if remote.installed is not None and remote.installed.path.is_file():
        if remote.installed.is_valid():
            return remote.installed.path
        logger.warning(f"{message_prefix}: {remote.installed.path} differs from the published file and is ignored")
    return download_file(remote.url, remote.digest, message_prefix, reporter, DataError)


def _build_dataset(spec: DatasetSpec, builder: DatasetBuilder) -> None:
    try:
        spec.build(builder)
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        if builder.unpack_dir not in missing.parents:
            raise
        raise DataError(
            f"{builder.message_prefix}: {missing.relative_to(builder.unpack_dir)} is missing from "
            f"{builder.describe_files()}; report it to the publisher"
        ) from error
    shutil.rmtree(builder.unpack_dir, ignore_errors=True)
    (builder.folder / "SOURCE.txt").write_text(CITATIONS[builder.name], encoding="utf-8")


def _remove_leftovers(root: Path) -> None:
    """Remove unfinished folders of this root whose process is no longer running, or has this process's number."""
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
