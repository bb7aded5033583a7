"""What the cache holds, for people to see and to clear."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ftcli.caching.choices import CHOICES, count_choices
from ftcli.caching.chunks import count_records
from ftcli.caching.images import MEMORY, count_images
from ftcli.caching.locks import is_held, remove_folder
from ftcli.caching.places import CHUNK, COMPUTED, find_cache, find_limit
from ftcli.caching.store import IDENTITY
from ftcli.errors import RecipeError, suggest
from ftcli.results import CacheListing, Reporter, Shelf

KINDS = (*COMPUTED, "downloads", "images", "choices")
"""The kinds of what is kept."""

_PARTS = (".part.tag", ".part")  # what a download is before it is whole


@dataclass(frozen=True)
class _Kept:
    """A shelf, and where it is: the folder of a store, or the files."""

    shelf: Shelf
    places: tuple[Path, ...]

    def is_busy(self) -> bool:
        """Whether another process writes to it."""
        if self.shelf.kind in COMPUTED:
            return is_held(self.places[0])
        return any(_is_locked(place) for place in self.places if place.suffix == ".part")

    def remove(self) -> bool:
        """Take it away, unless another process writes to it."""
        if self.shelf.kind in COMPUTED:
            return remove_folder(self.places[0])
        if self.is_busy():
            return False
        for place in self.places:
            place.unlink(missing_ok=True)
        return True


def list_cache() -> CacheListing:
    """What the cache holds. Nothing is made where there is none yet."""
    return _tell_cache(_find_shelves(find_cache()))


def clear_cache(names: Sequence[str], reporter: Reporter, everything: bool = False) -> CacheListing:
    """Take away the shelves of these names, and those of the kinds among them, or everything.

    Raises RecipeError for names that are unknown, and for a named shelf that another process writes to; nothing is then
    taken away. With `everything` such a shelf stays, and the reporter is told.
    """
    kept = _find_shelves(find_cache())
    known = {*KINDS, *(one.shelf.name for one in kept)}
    faults = [
        f"{name}: {find_cache()} holds nothing of that name; {suggest(name, known)}"
        for name in names
        if name not in known
    ]
    chosen = [one for one in kept if everything or {one.shelf.name, one.shelf.kind} & set(names)]
    if not everything:
        faults += [
            f"{one.shelf.name}: another ftcli is writing to it ({one.shelf.about}); clear it when that has ended"
            for one in chosen
            if one.is_busy()
        ]
    if faults:
        raise RecipeError(*faults)
    cleared = []
    for one in chosen:
        if one.remove():
            cleared.append(one.shelf)
        else:
            reporter.warn(f"{one.shelf.name}: another ftcli is writing to it ({one.shelf.about}); it stays")
    return _tell_cache(_find_shelves(find_cache()), cleared)


def _tell_cache(kept: Sequence[_Kept], cleared: Sequence[Shelf] = ()) -> CacheListing:
    shelves = sorted((one.shelf for one in kept), key=lambda shelf: shelf.used, reverse=True)
    return CacheListing(
        folder=find_cache(),
        limit=find_limit(),
        bytes=sum(shelf.bytes for shelf in shelves),
        shelves=tuple(shelves),
        cleared=tuple(cleared),
        freed=sum(shelf.bytes for shelf in cleared),
    )


def _find_shelves(cache: Path) -> list[_Kept]:
    kept = [_tell_store(kind, folder) for kind in COMPUTED for folder in _list_places(cache / kind) if folder.is_dir()]
    kept += _find_downloads(cache / "downloads")
    memory = tuple(place for place in (cache / MEMORY, cache / f"{MEMORY}-journal") if place.is_file())
    if memory:
        kept.append(_tell_files("images", "images", "digests of image files", count_images(cache), memory))
    if (cache / CHOICES).is_file():
        told = "number formats that were the faster"
        kept.append(_tell_files("choices", "choices", told, count_choices(cache), (cache / CHOICES,)))
    return kept


def _tell_store(kind: str, folder: Path) -> _Kept:
    places = _list_places(folder)
    chunks = [place for place in places if place.suffix == CHUNK]
    try:
        about = str(json.loads((folder / IDENTITY).read_text(encoding="utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):  # its filler was killed at once, or it is damaged
        about = "unknown"
    found = _tell_files(folder.name[:8], kind, about, sum(map(count_records, chunks)), chunks or places)
    return _Kept(found.shelf, (folder,))


def _find_downloads(folder: Path) -> Iterator[_Kept]:
    """The files that were downloaded, each with what it is before it is whole."""
    groups: dict[str, list[Path]] = {}
    for place in _list_places(folder):
        name = next((place.name.removesuffix(part) for part in _PARTS if place.name.endswith(part)), place.name)
        groups.setdefault(name, []).append(place)
    for name, places in groups.items():
        digest, _, title = name.partition("-")
        whole = folder / name in places
        yield _tell_files(digest[:8], "downloads", title if whole else f"{title} (a part)", int(whole), places)


def _tell_files(name: str, kind: str, about: str, records: int, places: Iterable[Path]) -> _Kept:
    places = tuple(places)
    stats = list(_look_at(places))
    used = max((found.st_mtime for found in stats), default=0.0)
    shelf = Shelf(
        name=name,
        kind=kind,
        about=about,
        records=records,
        bytes=sum(found.st_size for found in stats),
        used=datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
    )
    return _Kept(shelf, places)


def _look_at(places: Iterable[Path]) -> Iterator[os.stat_result]:
    for place in places:
        with suppress(FileNotFoundError):  # it has made room for another
            yield place.stat()


def _list_places(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_locked(place: Path) -> bool:
    with place.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
