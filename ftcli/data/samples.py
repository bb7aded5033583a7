"""Samples: the images of a data set with class, weight and group."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split for each lower-case name of a folder, or of a cell in a manifest."""

UNLABELED = -1
"""The label of a sample without a class."""


class Sample(NamedTuple):
    """An image of a data set.

    `path` is relative to the root, with slashes. `label` is the index of the class, `weight` a factor of the training
    loss; samples of one `group` are in the same split. `path_in_class` is the path below the class folder, or as the
    manifest has it: unlike `path`, it does not change when the root moves.
    """

    path: str
    label: int = UNLABELED
    weight: float = 1.0
    group: str | None = None
    path_in_class: str = ""


SamplesBySplit = dict[str, dict[str, list[Sample]]]
"""Split -> class -> samples. Data without splits have the one split "all"."""


def has_control_char(text: str) -> bool:
    """Return whether a text contains a control character or a line separator, which tables cannot show."""
    return any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text)


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Return a unique sort key by which class_2 precedes class_10, and 9 precedes 10."""
    parts = re.split(r"([0-9]+)", name)
    # Text and digits alternate. Numbers without their zeros are compared by length first, so that any length works.
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if position % 2 else (0, part) for position, part in enumerate(parts)
    ), name
