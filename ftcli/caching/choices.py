"""What was tried out on this machine once, so that it is chosen alike the next time, and at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftcli import storage
from ftcli.caching.places import find_cache, find_limit
from ftcli.errors import RecipeError, RunError

CHOICES = "choices.json"
"""The file in the cache that holds them."""


def recall_choice(question: Mapping[str, Any]) -> str | None:
    """What was chosen when this question was asked before, in plain JSON types; None if it never was."""
    choice = _read(find_cache()).get(_write(question))
    return choice if isinstance(choice, str) else None


def keep_choice(question: Mapping[str, Any], choice: str) -> None:
    """Keep a choice for the next time, where anything may be kept. Of two processes that do this at one moment the
    later one's stays; where the cache cannot be written, it is asked again."""
    if find_limit() == 0:
        return
    cache = find_cache()
    choices = {**_read(cache), _write(question): choice}
    with suppress(RecipeError, RunError):  # what needs the cache tells of it
        storage.make_folder(cache)
        storage.replace_file(cache / CHOICES, json.dumps(choices, indent=1) + "\n")


def count_choices(cache: Path) -> int:
    """How many are kept."""
    return len(_read(cache))


def _read(cache: Path) -> dict[str, Any]:
    try:
        choices = json.loads((cache / CHOICES).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it is asked again
        return {}
    return choices if isinstance(choices, dict) else {}


def _write(question: Mapping[str, Any]) -> str:
    return json.dumps(question, sort_keys=True)
