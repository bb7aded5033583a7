"""Image files in folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ftcli.data.images import is_image

OnError = Callable[[Path, OSError], None]


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the images directly in a folder. Hidden ones are skipped.

    Links are followed. Raises OSError if the folder cannot be read.
    """
    folders: list[str] = []
    images: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
                folders.append(entry.name)
            # Dangling links count as images, so that reading them reports an error. Pipes and devices do not.
            elif is_image(entry.name) and (entry.is_file() or not Path(entry.path).exists()):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def walk_images(
    folder: Path, on_error: OnError, max_depth: int | None = None, parents: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yield every image in a folder at any depth, or down to `max_depth`: its own first, then those of its folders.

    Links to `parents`, or to a folder that contains the link, are not followed: the walk would not end. Folders that
    cannot be read are passed to `on_error`.
    """
    return _walk(folder, on_error, max_depth, frozenset(_get_folder_id(parent) for parent in parents))


def _walk(
    folder: Path, on_error: OnError, max_depth: int | None, ancestors: frozenset[tuple[int, int] | None]
) -> Iterator[Path]:
    folder_id = _get_folder_id(folder)
    if folder_id is not None and folder_id in ancestors:
        return
    try:
        folders, images = list_folder(folder)
    except OSError as error:
        on_error(folder, error)
        return
    for name in images:
        yield folder / name
    if max_depth is None or max_depth > 1:
        for name in folders:
            yield from _walk(
                folder / name, on_error, None if max_depth is None else max_depth - 1, ancestors | {folder_id}
            )


def _get_folder_id(folder: Path) -> tuple[int, int] | None:
    """Return device and inode, or None where they cannot be read; listing the folder then reports the error."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
