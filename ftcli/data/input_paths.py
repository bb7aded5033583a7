"""Images named on a command line: files, folders, glob patterns, or a list on standard input."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from ftcli.data.index import walk_images
from ftcli.errors import DataError

_BLOCK_SIZE = 65536  # bytes; longer than any path, so that the first block shows whether NUL separates the paths


@dataclass(frozen=True)
class InputPaths:
    """Paths of images, found lazily, and their number, or None if they are read from standard input."""

    paths: Iterator[str]
    num_paths: int | None


def find_images(arguments: Sequence[str], stdin: BinaryIO) -> InputPaths:
    """Return the images named by `arguments`, in that order.

    A folder means every image in it at any depth, sorted, without hidden files. A name with * ? or [ that is not an
    existing file is a glob pattern, in which ** matches any number of folders. `-` is a list of files on `stdin`, one a
    line or separated by NUL. A file that is named is an image whatever its extension.

    Raises one DataError with every error: no argument, an empty name, a folder or list without images, a pattern
    without matches, a folder that cannot be read.
    """
    errors: list[str] = []
    if not arguments:
        errors.append("predict: no image is given; name files, folders or patterns, or - for a list on standard input")
    stdin_arguments = [argument for argument in arguments if argument == "-"]
    if len(stdin_arguments) > 1:
        errors.append("-: occurs twice, but standard input can be read only once; give it once")
    if "" in arguments:
        errors.append("predict: an argument is empty; give a file or folder (. is the current folder)")
    image_counts = [_count_images(argument, errors) for argument in arguments if argument not in ("", "-")]
    if errors:
        raise DataError(*errors)
    listed_paths = _read_path_list(stdin) if stdin_arguments else iter(())
    first_path = next(listed_paths, None)
    if stdin_arguments and first_path is None:
        raise DataError("-: standard input has no paths; write one path per line, as `find photos -name '*.jpg'` does")
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
        errors.append(f"{argument}: contains no image; give a folder with images")
    elif not count:
        errors.append(f"{argument}: matches no image; fix the pattern (** matches any number of folders)")
    return count


def _expand_argument(argument: str) -> Iterator[str]:
    """Return the images of one argument other than `-`."""
    if _is_folder(Path(argument)):
        return map(str, _walk(Path(argument)))
    return (
        _glob_images(Path(argument).parts)
        if _is_pattern(argument) and not os.path.lexists(argument)
        else iter((argument,))
    )


def _glob_images(parts: tuple[str, ...]) -> Iterator[str]:
    """Yield the images whose path matches a glob pattern."""
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
    """Return whether a path is a folder. False if it cannot be checked; reading it then reports the error."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_pattern(text: str) -> bool:
    return any(wildcard in text for wildcard in "*?[")


def _walk(folder: Path, max_depth: int | None = None) -> Iterator[Path]:
    return walk_images(folder, _raise_folder_error, max_depth)


def _raise_folder_error(folder: Path, error: OSError) -> None:
    raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error


def _read_path_list(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list, without empty ones, the byte order mark and carriage returns of Windows."""
    first_block = stream.read(_BLOCK_SIZE)
    separator, line_ending = (b"\0", b"") if b"\0" in first_block else (b"\n", b"\r")
    remainder = b""
    blocks: Iterable[bytes] = chain(
        [first_block.removeprefix(codecs.BOM_UTF8)], iter(lambda: stream.read(_BLOCK_SIZE), b"")
    )
    for block in chain(blocks, [separator]):
        *lines, remainder = (remainder + block).split(separator)
        yield from (os.fsdecode(path) for line in lines if (path := line.removesuffix(line_ending)))
