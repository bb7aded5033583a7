"""How the cache looks."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import escape_controls, print_table
from ftcli.results import CacheEntry, CacheResult, format_size


def print_cache_listing(console: Console, result: CacheResult) -> None:
    """What was cleared, where that was asked for, or else what there is."""
    if result.cleared:
        _print_entries(console, result.cleared)
        console.print(f"cleared: {format_size(result.freed)}; {format_size(result.bytes)} are left", soft_wrap=True)
        return
    if result.shelves:
        _print_entries(console, result.shelves)
        console.print()
    folder = escape_controls(str(result.folder))
    console.print(f"{folder}: {format_size(result.bytes) if result.shelves else 'empty'}", soft_wrap=True)
    if result.limit:
        limit = f"features and pixels may take {format_size(result.limit)}, then what was used longest ago makes room"
    else:
        limit = "features and pixels are not kept"
    console.print(f"{limit}; FTCLI_CACHE_LIMIT sets this, FTCLI_CACHE the folder", soft_wrap=True)
    if result.shelves:
        console.print("to clear: ftcli cache clear NAME, or --all", soft_wrap=True)


def _print_entries(console: Console, entries: tuple[CacheEntry, ...]) -> None:
    rows = [
        (entry.name, entry.kind, f"{entry.records:,}", format_size(entry.bytes), _format_time(entry.used), entry.about)
        for entry in entries
    ]
    print_table(console, ("name", "kind", ">records", ">size", "last used, UTC", "what"), rows)


def _format_time(timestamp: str) -> str:
    return timestamp[:16].replace("T", " ")
