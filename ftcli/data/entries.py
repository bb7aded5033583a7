"""An image as its root lists it, and what a class may be called."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Which split a folder or a cell of a manifest stands for, by its name in lower case."""


class Entry(NamedTuple):
    """An image and what its root says of it.

    `path` leads to it from the folder that all paths of a listing are relative to. `inner` is its path below its class
    folder, or as its manifest has it: share and group depend on this one, so that they outlive a move of the root.
    """

    path: str
    path_in_class: str
    label: str
    weight: float = 1.0
    group: str | None = None


SamplesBySplit = dict[str, dict[str, list[Entry]]]
"""Split name -> class name -> its images. Without splits there is one, "all"."""


def find_class_name_errors(class_names: Iterable[str]) -> list[str]:
    """What is wrong with the names of classes: control characters, and names that look the same."""
    errors: list[str] = []
    first_by_normalized: dict[str, str] = {}
    for name in sorted(set(class_names)):
        if has_control_char(name):
            errors.append(f"the class {name!r} holds a control character; rename it")
        first_name = first_by_normalized.setdefault(unicodedata.normalize("NFC", name), name)
        if first_name != name:
            errors.append(
                f"the classes {first_name!a} and {name!a} differ only in how Unicode composes their letters; give both one "
                "name"
            )
    return errors


def has_control_char(text: str) -> bool:
    """Whether a text holds a control character or a line separator, which no table could show."""
    return any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text)
