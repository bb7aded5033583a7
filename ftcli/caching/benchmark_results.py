"""What was tried out on this machine once, so that it is chosen alike the next time, and at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftcli import files
from ftcli.caching.eviction import get_cache_dir, get_cache_limit
from ftcli.errors import RecipeError, RunError

CHOICES_FILE = "choices.json"
"""The file in the cache that holds them."""


def load_choice(benchmark: Mapping[str, Any]) -> str | None:
    """What was chosen when this question was asked before, in plain JSON types; None if it never was."""
    choice = _load_choices(get_cache_dir()).get(_encode_key(benchmark))
    return choice if isinstance(choice, str) else None


def save_choice(benchmark: Mapping[str, Any], choice: str) -> None:
    """Keep a choice for the next time, where anything may be kept. Of two processes that do this at one moment the
    later one's stays; where the cache cannot be written, it is asked again."""
    if get_cache_limit() == 0:
        return
    cache = get_cache_dir()
    choices = {**_load_choices(cache), _encode_key(benchmark): choice}
    with suppress(RecipeError, RunError):  # what needs the cache tells of it
        files.make_dir(cache)
        files.atomic_write(cache / CHOICES_FILE, json.dumps(choices, indent=1) + "\n")


def count_choices(cache: Path) -> int:
    """How many are kept."""
    return len(_load_choices(cache))


def _load_choices(cache: Path) -> dict[str, Any]:
    try:
        choices = json.loads((cache / CHOICES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it is asked again
        return {}
    return choices if isinstance(choices, dict) else {}


def _encode_key(benchmark: Mapping[str, Any]) -> str:
    return json.dumps(benchmark, sort_keys=True)
