"""The folder of a known data set: whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ftcli import storage
from ftcli.data.fetching.making import Making
from ftcli.data.fetching.registry import DATA_SETS, DataSet, Remote
from ftcli.data.sources import read_folder
from ftcli.downloads import fetch_file
from ftcli.errors import DataError, RunError, suggest
from ftcli.results import Fetched, Reporter


def fetch(name: str, root: Path, reporter: Reporter) -> Fetched:
    """Make a known data set at `root`, whole or not at all, and count its images by split and class.

    The same name always gives the same folders. Its files are downloaded once and checked against their digests; a
    system package that has them is used instead. Raises DataError for an unknown name, a root that exists and is not
    empty, files that cannot be had or are others, an archive that is broken or not to be trusted, or a Python package
    that is missing or incomplete; RunError where it cannot be written.
    """
    if name not in DATA_SETS:
        raise DataError(f"download: {name!r} is no known data set; {suggest(name, DATA_SETS)}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root}: is there already and not empty; remove it, or give another folder")
    known = DATA_SETS[name]
    files = tuple(_obtain(remote, f"download: {name}", reporter) for remote in known.files)
    unfinished = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        _clear_remains(root)
        unfinished.mkdir(parents=True)
        _make(known, Making(name, unfinished, files, known.most, reporter))
        splits = {
            split: {label: len(paths) for label, paths in classes.items()}
            for split, classes in read_folder(unfinished, f"download: {name}").items()
        }
        storage.publish_folder(unfinished, root)
    except OSError as error:
        raise RunError(f"{root}: cannot be made ({error.strerror}); make room, or give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Fetched(name, root, sum(sum(classes.values()) for classes in splits.values()), splits)


def _obtain(remote: Remote, where: str, reporter: Reporter) -> Path:
    if remote.installed is not None and remote.installed.path.is_file():
        if remote.installed.is_right():
            return remote.installed.path
        reporter.warn(f"{where}: {remote.installed.path} is not the file that is known and is passed over")
    return fetch_file(remote.url, remote.digest, where, reporter, DataError)


def _make(known: DataSet, making: Making) -> None:
    try:
        known.make(making)
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        if making.unpacked not in missing.parents:
            raise
        archives = " and ".join(str(path) for path in making.files)
        raise DataError(
            f"{making.where}: there is no {missing.relative_to(making.unpacked)} in {archives}; tell its publisher"
        ) from error
    shutil.rmtree(making.unpacked, ignore_errors=True)
    (making.folder / "SOURCE.txt").write_text(known.source, encoding="utf-8")


def _clear_remains(root: Path) -> None:
    """Remove what killed processes left of making this root, and of this process's number."""
    if not root.parent.is_dir():
        return
    for entry in root.parent.iterdir():
        begin, _, number = entry.name.removesuffix(".unfinished").rpartition(".")
        left = entry.name.endswith(".unfinished") and begin == f".{root.name}" and number.isdecimal()
        if left and (int(number) == os.getpid() or not _runs(int(number))):
            shutil.rmtree(entry, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
