"""The images that a command line names: files, folders, patterns, or a list on standard input."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from ftcli.data.images import is_image
from ftcli.errors import DataError

_BLOCK_SIZE = 65536  # bytes of a list after which it is known whether NUL separates its paths; none is as long


@dataclass(frozen=True)
class InputPaths:
    """Paths of images, found as they are taken, and how many they are; None where only the end of a list tells."""

    paths: Iterator[str]
    num_paths: int | None


def find_images(arguments: Sequence[str], stdin: BinaryIO) -> InputPaths:
    """The images that `given` names, in its order.

    A folder stands for every image in it at any depth, sorted; hidden files and files that are no images are passed
    over. Any other name that is no file and has * ? or [ in it is a pattern for such images, where ** stands for any
    number of folders. `-` is a list of files in `listed`, one a line, or separated by NUL where it has one. A file that
    is named is taken for an image, whatever it is.

    Raises DataError with every fault at once: nothing given, an empty name, a folder or a list without images, a
    pattern that none fits, a folder that cannot be read.
    """
    errors: list[str] = []
    if not arguments:
        errors.append("predict: no image is given; name files, folders or patterns, or - for a list on standard input")
    stdin_arguments = [argument for argument in arguments if argument == "-"]
    if len(stdin_arguments) > 1:
        errors.append("-: stands twice; standard input can be read once")
    if "" in arguments:
        errors.append("predict: an image is given by an empty name; give its file (. is the current folder)")
    image_counts = [_count_images(argument, errors) for argument in arguments if argument not in ("", "-")]
    if errors:
        raise DataError(*errors)
    listed_paths = _read_path_list(stdin) if stdin_arguments else iter(())
    first_path = next(listed_paths, None)
    if stdin_arguments and first_path is None:
        raise DataError("-: standard input names no image; give a path a line, as `find photos -name '*.jpg'` does")
    stdin_paths = () if first_path is None else chain([first_path], listed_paths)
    return InputPaths(
        chain.from_iterable(stdin_paths if argument == "-" else _expand_argument(argument) for argument in arguments),
        None if stdin_arguments else sum(image_counts),
    )


def _count_images(argument: str, errors: list[str]) -> int:
    try:
        count = sum(1 for _ in _expand_argument(argument))
    except DataError as error:
        errors += error.messages
        return 0
    if not count and _is_folder(Path(argument)):
        errors.append(f"{argument}: holds no image; give a folder that does")
    elif not count:
        errors.append(f"{argument}: fits no image; mend the pattern, in which ** stands for any number of folders")
    return count


def _expand_argument(argument: str) -> Iterator[str]:
    """The images that one argument stands for."""
    if _is_folder(Path(argument)):
        return map(str, _walk(Path(argument)))
    return (
        _glob_images(Path(argument).parts)
        if _is_pattern(argument) and not os.path.lexists(argument)
        else iter((argument,))
    )


def _glob_images(parts: tuple[str, ...]) -> Iterator[str]:
    """The images whose path fits a pattern."""
    first_wildcard = next(number for number, part in enumerate(parts) if _is_pattern(part))
    base, pattern = Path(*parts[:first_wildcard]), parts[first_wildcard:]
    if _is_folder(base):
        for path in _walk(base, None if "**" in pattern else len(pattern)):
            if _matches_pattern(path.parts[len(base.parts) :], pattern):
                yield str(path)


def _matches_pattern(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches_pattern(parts, pattern[1:]) or (bool(parts) and _matches_pattern(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches_pattern(parts[1:], pattern[1:])


def _is_folder(path: Path) -> bool:
    """Whether it is known to be a folder; of what cannot be asked, whoever opens it tells."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_pattern(text: str) -> bool:
    return any(wildcard in text for wildcard in "*?[")


def _walk(
    folder: Path, depth: int | None = None, ancestors: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """Every image of a folder, its own before those of the folders in it, sorted; only the names in the folders that
    lead there are held. A link to a folder that this one lies in is not entered: it would never end."""
    try:
        status = folder.stat()
        folder_id = (status.st_dev, status.st_ino)
        if folder_id in ancestors:
            return
        folders, images = _list_folder(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    for name in images:
        yield folder / name
    if depth is None or depth > 1:
        for name in folders:
            yield from _walk(folder / name, None if depth is None else depth - 1, ancestors | {folder_id})


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and images right inside a folder, sorted, without hidden ones."""
    folders: list[str] = []
    images: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            # A link to nowhere counts: whoever opens it tells that it leads nowhere. Pipes and devices do not.
            elif is_image(entry.name) and (entry.is_file() or not Path(entry.path).exists()):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def _read_path_list(stream: BinaryIO) -> Iterator[str]:
    """The paths of a list, of any bytes; empty ones are passed over, and so is what Windows adds to a list of lines."""
    first_block = stream.read(_BLOCK_SIZE)
    separator, line_ending = (b"\0", b"") if b"\0" in first_block else (b"\n", b"\r")
    remainder = b""
    blocks: Iterable[bytes] = chain(
        [first_block.removeprefix(codecs.BOM_UTF8)], iter(lambda: stream.read(_BLOCK_SIZE), b"")
    )
    for block in chain(blocks, [separator]):
        *lines, remainder = (remainder + block).split(separator)
        yield from (os.fsdecode(path) for line in lines if (path := line.removesuffix(line_ending)))
