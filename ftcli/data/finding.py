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

_HEAD = 65536  # bytes of a list after which it is known whether NUL separates its paths; none is as long


@dataclass(frozen=True)
class Found:
    """Paths of images, found as they are taken, and how many they are; None where only the end of a list tells."""

    paths: Iterator[str]
    count: int | None


def find_images(given: Sequence[str], listed: BinaryIO) -> Found:
    """The images that `given` names, in its order.

    A folder stands for every image in it at any depth, sorted; hidden files and files that are no images are passed
    over. Any other name that is no file and has * ? or [ in it is a pattern for such images, where ** stands for any
    number of folders. `-` is a list of files in `listed`, one a line, or separated by NUL where it has one. A file that
    is named is taken for an image, whatever it is.

    Raises DataError with every fault at once: nothing given, an empty name, a folder or a list without images, a
    pattern that none fits, a folder that cannot be read.
    """
    faults: list[str] = []
    if not given:
        faults.append("predict: no image is given; name files, folders or patterns, or - for a list on standard input")
    lists = [place for place in given if place == "-"]
    if len(lists) > 1:
        faults.append("-: stands twice; standard input can be read once")
    if "" in given:
        faults.append("predict: an image is given by an empty name; give its file (. is the current folder)")
    counts = [_count(place, faults) for place in given if place not in ("", "-")]
    if faults:
        raise DataError(*faults)
    coming = _read_list(listed) if lists else iter(())
    first = next(coming, None)
    if lists and first is None:
        raise DataError("-: standard input names no image; give a path a line, as `find photos -name '*.jpg'` does")
    named = () if first is None else chain([first], coming)
    return Found(
        chain.from_iterable(named if place == "-" else _expand(place) for place in given),
        None if lists else sum(counts),
    )


def _count(place: str, faults: list[str]) -> int:
    try:
        count = sum(1 for _ in _expand(place))
    except DataError as error:
        faults += error.faults
        return 0
    if not count and _is_folder(Path(place)):
        faults.append(f"{place}: holds no image; give a folder that does")
    elif not count:
        faults.append(f"{place}: fits no image; mend the pattern, in which ** stands for any number of folders")
    return count


def _expand(place: str) -> Iterator[str]:
    """The images that one argument stands for."""
    if _is_folder(Path(place)):
        return map(str, _walk(Path(place)))
    return _match(Path(place).parts) if _is_pattern(place) and not os.path.lexists(place) else iter((place,))


def _match(parts: tuple[str, ...]) -> Iterator[str]:
    """The images whose path fits a pattern."""
    first = next(number for number, part in enumerate(parts) if _is_pattern(part))
    base, pattern = Path(*parts[:first]), parts[first:]
    if _is_folder(base):
        for path in _walk(base, None if "**" in pattern else len(pattern)):
            if _fits(path.parts[len(base.parts) :], pattern):
                yield str(path)


def _fits(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(names, pattern[1:]) or (bool(names) and _fits(names[1:], pattern))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _is_folder(path: Path) -> bool:
    """Whether it is known to be a folder; of what cannot be asked, whoever opens it tells."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _walk(folder: Path, depth: int | None = None, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Every image of a folder, its own before those of the folders in it, sorted; only the names in the folders that
    lead there are held. A link to a folder that this one lies in is not entered: it would never end."""
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        folders, images = _list(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    for name in images:
        yield folder / name
    if depth is None or depth > 1:
        for name in folders:
            yield from _walk(folder / name, None if depth is None else depth - 1, above | {here})


def _list(folder: Path) -> tuple[list[str], list[str]]:
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


def _read_list(stream: BinaryIO) -> Iterator[str]:
    """The paths of a list, of any bytes; empty ones are passed over, and so is what Windows adds to a list of lines."""
    head = stream.read(_HEAD)
    sign, ending = (b"\0", b"") if b"\0" in head else (b"\n", b"\r")
    rest = b""
    blocks: Iterable[bytes] = chain([head.removeprefix(codecs.BOM_UTF8)], iter(lambda: stream.read(_HEAD), b""))
    for block in chain(blocks, [sign]):
        *whole, rest = (rest + block).split(sign)
        yield from (os.fsdecode(path) for line in whole if (path := line.removesuffix(ending)))
