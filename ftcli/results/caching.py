"""What is kept on the disk so that it need not be computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class CacheEntry(Result):
    """What is kept of one kind under one identity. `name` is what `ftcli cache clear` calls it, `kind` features,
    pixels, downloads or images (the digests of image files), `about` what it holds, as people say it, `used` when it
    was last used, as ISO 8601 in UTC."""

    name: str
    kind: str
    about: str
    records: int
    bytes: int
    used: str


@dataclass(frozen=True)
class CacheListing(Result):
    """What `ftcli cache` tells: where the cache is, the most bytes that its features and pixels may take, the bytes
    that all of it takes, and what it holds, the last used first. `cleared` are the shelves that were taken away, and
    `freed` their bytes."""

    folder: Path
    limit: int
    bytes: int
    shelves: tuple[CacheEntry, ...]
    cleared: tuple[CacheEntry, ...] = ()
    freed: int = 0
