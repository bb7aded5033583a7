"""How the cache looks."""

from __future__ import annotations

from rich.console import Console

from ftcli.console.tables import make_visible, print_table
from ftcli.results import CacheListing, Shelf, tell_size


def print_cache(console: Console, result: CacheListing) -> None:
    """What was cleared, where that was asked for, or else what there is."""
    if result.cleared:
        _print_shelves(console, result.cleared)
        console.print(f"cleared: {tell_size(result.freed)}; {tell_size(result.bytes)} are left", soft_wrap=True)
        return
    if result.shelves:
        _print_shelves(console, result.shelves)
        console.print()
    folder = make_visible(str(result.folder))
    console.print(f"{folder}: {tell_size(result.bytes) if result.shelves else 'empty'}", soft_wrap=True)
    if result.limit:
        limit = f"features and pixels may take {tell_size(result.limit)}, then what was used longest ago makes room"
    else:
        limit = "features and pixels are not kept"
    console.print(f"{limit}; FTCLI_CACHE_LIMIT sets this, FTCLI_CACHE the folder", soft_wrap=True)
    if result.shelves:
        console.print("to clear: ftcli cache clear NAME, or --all", soft_wrap=True)


def _print_shelves(console: Console, shelves: tuple[Shelf, ...]) -> None:
    rows = [
        (shelf.name, shelf.kind, f"{shelf.records:,}", tell_size(shelf.bytes), _tell_time(shelf.used), shelf.about)
        for shelf in shelves
    ]
    print_table(console, ("name", "kind", ">records", ">size", "last used, UTC", "what"), rows)


def _tell_time(text: str) -> str:
    return text[:16].replace("T", " ")
