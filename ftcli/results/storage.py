"""Results of `ftcli cache` and `ftcli data download`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class CacheEntry(Result):
    """One entry of the cache. `name` is the argument of `ftcli cache clear`, `kind` is features, pixels, downloads,
    images (hashes of image files) or choices, `about` a description, and `used` the time of last use, ISO 8601 in
    UTC."""

    name: str
    kind: str
    about: str
    records: int
    bytes: int
    used: str


@dataclass(frozen=True)
class CacheResult(Result):
    """The result of `ftcli cache`: the entries, last used first.

    `limit` is the maximum size of features and pixels in bytes, `bytes` the size of the whole cache. `cleared` are the
    entries removed by `ftcli cache clear`, and `freed` their size in bytes.
    """

    folder: Path
    limit: int
    bytes: int
    shelves: tuple[CacheEntry, ...]
    cleared: tuple[CacheEntry, ...] = ()
    freed: int = 0


@dataclass(frozen=True)
class DownloadResult(Result):
    """The result of `ftcli data download`, with image counts by split and class."""

    name: str
    root: Path
    images: int
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
