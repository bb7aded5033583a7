"""The contents of the cache, for `ftcli cache`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ftcli.caching.eviction import (
    EVICTABLE_KINDS,
    RECORDS_SUFFIX,
    get_cache_dir,
    get_cache_limit,
    remove_unlocked_folder,
)
from ftcli.caching.file_hashes import DATABASE_FILE, count_hashes
from ftcli.caching.measured_choices import CHOICES_FILE, count_choices
from ftcli.caching.record_file import count_records
from ftcli.caching.store import IDENTITY_FILE
from ftcli.errors import RecipeError, suggest
from ftcli.files import is_locked
from ftcli.results import CacheEntry, CacheResult

logger = logging.getLogger(__name__)

KINDS = (*EVICTABLE_KINDS, "downloads", "images", "choices")
"""The kinds of cache entries."""

_PARTIAL_SUFFIXES = (".part.tag", ".part")  # of an incomplete download


@dataclass(frozen=True)
class _StoredEntry:
    """A cache entry and its paths: the directory of a store, or files."""

    entry: CacheEntry
    paths: tuple[Path, ...]

    def is_being_written(self) -> bool:
        """Return whether a process is writing to the entry."""
        if self.entry.kind in EVICTABLE_KINDS:
            return is_locked(self.paths[0])
        return any(_is_locked(path) for path in self.paths if path.suffix == ".part")

    def remove(self) -> bool:
        """Remove the entry and return True; return False if a process is writing to it."""
        if self.entry.kind in EVICTABLE_KINDS:
            return remove_unlocked_folder(self.paths[0])
        if self.is_being_written():
            return False
        for path in self.paths:
            path.unlink(missing_ok=True)
        return True


def list_cache() -> CacheResult:
    """List the cache. A missing cache directory is not created."""
    return _build_listing(_find_entries(get_cache_dir()))


def clear_cache(names: Sequence[str], everything: bool = False) -> CacheResult:
    """Remove the entries with these names or kinds, or all entries.

    Raises RecipeError for unknown names and for a named entry that a process is writing to; nothing is removed then.
    With `everything` such an entry is reported and not removed.
    """
    stored_entries = _find_entries(get_cache_dir())
    known_names = {*KINDS, *(stored.entry.name for stored in stored_entries)}
    errors = [
        f"{name}: {get_cache_dir()} has no entry or kind of this name; {suggest(name, known_names)}"
        for name in names
        if name not in known_names
    ]
    chosen = [stored for stored in stored_entries if everything or {stored.entry.name, stored.entry.kind} & set(names)]
    if not everything:
        errors += [
            f"{stored.entry.name}: another ftcli is writing to it ({stored.entry.about}); try again when it has ended"
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
            logger.warning(
                f"{stored.entry.name}: another ftcli is writing to it ({stored.entry.about}); it was not removed"
            )
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
        description = "number formats chosen by measurement"
        stored_entries.append(
            _describe_files("choices", "choices", description, count_choices(cache), (cache / CHOICES_FILE,))
        )
    return stored_entries


def _describe_store(kind: str, folder: Path) -> _StoredEntry:
    paths = _list_folder(folder)
    record_files = [path for path in paths if path.suffix == RECORDS_SUFFIX and path.is_file()]
    try:
        description = str(json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):  # the writer was killed, or the file is corrupt
        description = "unknown"
    described = _describe_files(
        folder.name[:8], kind, description, sum(map(count_records, record_files)), record_files or paths
    )
    return _StoredEntry(described.entry, (folder,))


def _find_downloads(folder: Path) -> Iterator[_StoredEntry]:
    """Iterate over downloaded files, each with its incomplete parts."""
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
            digest[:8], "downloads", title if is_complete else f"{title} (incomplete)", int(is_complete), paths
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
        with suppress(FileNotFoundError):  # evicted after the listing
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
