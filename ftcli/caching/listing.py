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

from ftcli.caching.benchmark_results import CHOICES_FILE, count_choices
from ftcli.caching.chunks import count_records
from ftcli.caching.eviction import CHUNK_SUFFIX, EVICTABLE_KINDS, get_cache_dir, get_cache_limit
from ftcli.caching.file_hashes import DATABASE_FILE, count_hashes
from ftcli.caching.locks import is_locked, remove_unlocked_folder
from ftcli.caching.store import IDENTITY_FILE
from ftcli.errors import RecipeError, suggest
from ftcli.results import CacheEntry, CacheResult, Reporter

KINDS = (*EVICTABLE_KINDS, "downloads", "images", "choices")
"""The kinds of what is kept."""

_PARTIAL_SUFFIXES = (".part.tag", ".part")  # what a download is before it is whole


@dataclass(frozen=True)
class _StoredEntry:
    """A shelf, and where it is: the folder of a store, or the files."""

    entry: CacheEntry
    paths: tuple[Path, ...]

    def is_being_written(self) -> bool:
        """Whether another process writes to it."""
        if self.entry.kind in EVICTABLE_KINDS:
            return is_locked(self.paths[0])
        return any(_is_locked(path) for path in self.paths if path.suffix == ".part")

    def remove(self) -> bool:
        """Take it away, unless another process writes to it."""
        if self.entry.kind in EVICTABLE_KINDS:
            return remove_unlocked_folder(self.paths[0])
        if self.is_being_written():
            return False
        for path in self.paths:
            path.unlink(missing_ok=True)
        return True


def list_cache() -> CacheResult:
    """What the cache holds. Nothing is made where there is none yet."""
    return _build_listing(_find_entries(get_cache_dir()))


def clear_cache(names: Sequence[str], reporter: Reporter, everything: bool = False) -> CacheResult:
    """Take away the shelves of these names, and those of the kinds among them, or everything.

    Raises RecipeError for names that are unknown, and for a named shelf that another process writes to; nothing is then
    taken away. With `everything` such a shelf stays, and the reporter is told.
    """
    stored_entries = _find_entries(get_cache_dir())
    known_names = {*KINDS, *(stored.entry.name for stored in stored_entries)}
    errors = [
        f"{name}: {get_cache_dir()} holds nothing of that name; {suggest(name, known_names)}"
        for name in names
        if name not in known_names
    ]
    chosen = [stored for stored in stored_entries if everything or {stored.entry.name, stored.entry.kind} & set(names)]
    if not everything:
        errors += [
            f"{stored.entry.name}: another ftcli is writing to it ({stored.entry.about}); clear it when that has ended"
            for stored in chosen
            if stored.is_being_written()
        ]
    if errors:
        raise RecipeError(*errors)
    cleared = []
    for stored in chosen:
        if stored.remove():
            cleared.append(stored.entry)
        else:
            reporter.warn(f"{stored.entry.name}: another ftcli is writing to it ({stored.entry.about}); it stays")
    return _build_listing(_find_entries(get_cache_dir()), cleared)


def _build_listing(stored_entries: Sequence[_StoredEntry], cleared: Sequence[CacheEntry] = ()) -> CacheResult:
    entries = sorted((stored.entry for stored in stored_entries), key=lambda entry: entry.used, reverse=True)
    return CacheResult(
        folder=get_cache_dir(),
        limit=get_cache_limit(),
        bytes=sum(entry.bytes for entry in entries),
        shelves=tuple(entries),
        cleared=tuple(cleared),
        freed=sum(entry.bytes for entry in cleared),
    )


def _find_entries(cache: Path) -> list[_StoredEntry]:
    stored_entries = [
        _describe_store(kind, folder)
        for kind in EVICTABLE_KINDS
        for folder in _list_folder(cache / kind)
        if folder.is_dir()
    ]
    stored_entries += _find_downloads(cache / "downloads")
    database_files = tuple(
        path for path in (cache / DATABASE_FILE, cache / f"{DATABASE_FILE}-journal") if path.is_file()
    )
    if database_files:
        stored_entries.append(
            _describe_files("images", "images", "digests of image files", count_hashes(cache), database_files)
        )
    if (cache / CHOICES_FILE).is_file():
        description = "number formats that were the faster"
        stored_entries.append(
            _describe_files("choices", "choices", description, count_choices(cache), (cache / CHOICES_FILE,))
        )
    return stored_entries


def _describe_store(kind: str, folder: Path) -> _StoredEntry:
    paths = _list_folder(folder)
    chunks = [path for path in paths if path.suffix == CHUNK_SUFFIX]
    try:
        description = str(json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):  # its filler was killed at once, or it is damaged
        description = "unknown"
    described = _describe_files(folder.name[:8], kind, description, sum(map(count_records, chunks)), chunks or paths)
    return _StoredEntry(described.entry, (folder,))


def _find_downloads(folder: Path) -> Iterator[_StoredEntry]:
    """The files that were downloaded, each with what it is before it is whole."""
    groups: dict[str, list[Path]] = {}
    for path in _list_folder(folder):
        name = next(
            (path.name.removesuffix(suffix) for suffix in _PARTIAL_SUFFIXES if path.name.endswith(suffix)), path.name
        )
        groups.setdefault(name, []).append(path)
    for name, paths in groups.items():
        digest, _, title = name.partition("-")
        is_complete = folder / name in paths
        yield _describe_files(
            digest[:8], "downloads", title if is_complete else f"{title} (a part)", int(is_complete), paths
        )


def _describe_files(name: str, kind: str, description: str, records: int, paths: Iterable[Path]) -> _StoredEntry:
    paths = tuple(paths)
    stats = list(_stat_files(paths))
    last_used = max((file_stat.st_mtime for file_stat in stats), default=0.0)
    entry = CacheEntry(
        name=name,
        kind=kind,
        about=description,
        records=records,
        bytes=sum(file_stat.st_size for file_stat in stats),
        used=datetime.fromtimestamp(last_used, UTC).isoformat(timespec="seconds"),
    )
    return _StoredEntry(entry, paths)


def _stat_files(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        with suppress(FileNotFoundError):  # it has made room for another
            yield path.stat()


def _list_folder(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
