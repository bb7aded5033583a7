"""Choices made by measurement on this machine, such as the number format, stored for later runs."""

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
"""The file of the choices in the cache directory."""


def load_choice(benchmark: Mapping[str, Any]) -> str | None:
    """Return the stored choice of a benchmark, described in JSON types; None if there is none."""
    choice = _load_choices(get_cache_dir()).get(_encode_key(benchmark))
    return choice if isinstance(choice, str) else None


def save_choice(benchmark: Mapping[str, Any], choice: str) -> None:
    """Store the choice of a benchmark.

    If two processes store a choice at the same time, one of them may be lost. Nothing is stored if the cache is
    disabled or cannot be written. A benchmark without a stored choice runs again.
    """
    if get_cache_limit() == 0:
        return
    cache = get_cache_dir()
    choices = {**_load_choices(cache), _encode_key(benchmark): choice}
    with suppress(RecipeError, RunError):  # later uses of the cache report it
        files.make_dir(cache)
        files.atomic_write(cache / CHOICES_FILE, json.dumps(choices, indent=1) + "\n")


def count_choices(cache: Path) -> int:
    """Return the number of stored choices."""
    return len(_load_choices(cache))


def _load_choices(cache: Path) -> dict[str, Any]:
    try:
        choices = json.loads((cache / CHOICES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or corrupt: the benchmark runs again
        return {}
    return choices if isinstance(choices, dict) else {}


def _encode_key(benchmark: Mapping[str, Any]) -> str:
    return json.dumps(benchmark, sort_keys=True)
