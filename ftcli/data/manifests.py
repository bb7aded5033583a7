"""Manifests: tables that name images, their classes and, where they like, their splits, weights and groups."""

from __future__ import annotations

import math
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ftcli.data.entries import SPLIT_ALIASES, Entry, SamplesBySplit, has_control_char
from ftcli.data.tables import Table, open_table
from ftcli.errors import suggest
from ftcli.recipe.schema.data import MANIFEST_SUFFIXES

COLUMNS = ("path", "label", "split", "weight", "group")
"""The columns that are read; the first two must be there. Others are passed over."""

_MAX_REPORTED = 10
_MAX_WEIGHT = 1e12
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_manifest(root: Path) -> bool:
    """Whether a root is a manifest, by its name. A folder is none, whatever it is called."""
    return root.suffix.lower() in MANIFEST_SUFFIXES and not root.is_dir()


class ManifestScan:
    """The rows of one manifest. Faults gather in `faults`, each begun with `where`."""

    def __init__(self, path: Path, location: str) -> None:
        self.path = path
        self.location = location
        self.errors: list[str] = []
        self._error_counts: Counter[str] = Counter()
        self._first_seen: dict[str, tuple[int, str]] = {}
        self._base_folder = path.parent.absolute()

    def read(self) -> SamplesBySplit:
        """The images by split and class, as sorted by path; those without a split are "all" where no row names one.

        Where some do, an image without a split goes where the other images of its group are, else to train. Of faults
        of one kind the first 10 are noted, then their number. Raises DataError for a file that cannot be read.
        """
        table = open_table(self.path, self.location, COLUMNS, self._add_error)
        if not self._check_header(table):
            return {}
        columns = [name for name in COLUMNS if name in table.header]
        rows: list[tuple[str | None, Entry]] = []
        for row_number, cells in table.rows(columns):
            row = self._read_row(table, row_number, dict(zip(columns, cells, strict=True)))
            if row is not None:
                rows.append(row)
        for kind, count in self._error_counts.items():
            if count > _MAX_REPORTED:
                self.errors.append(f"{self.location}: {self.path}: {count - _MAX_REPORTED} more rows {kind}")
        if not rows and not self.errors:
            self.errors.append(f"{self.location}: {self.path} lists no image; give it a row for each")
        return _group_by_split(rows)

    def _add_error(self, row_location: str, message: str, kind: str) -> None:
        self._error_counts[kind] += 1
        if self._error_counts[kind] <= _MAX_REPORTED:
            self.errors.append(f"{self.location}: {row_location}: {message}")

    def _check_header(self, table: Table) -> bool:
        """Whether the columns are there, once each, and none is named almost as one that would be read."""
        errors = [
            f"has no column {name!r}; {suggest(name, table.header)}" for name in COLUMNS[:2] if name not in table.header
        ]
        errors += [f"has the column {name!r} twice; keep one" for name in COLUMNS if table.header.count(name) > 1]
        for name in table.header:
            column = name.strip().lower().rstrip("s")
            if column in COLUMNS[2:] and column not in table.header:
                errors.append(f"has a column {name!r}, which is not read; call it {column!r}, or something else")
        self.errors += [f"{self.location}: {self.path}: {error}" for error in errors]
        return not errors

    def _read_row(
        self, table: Table, row_number: int, cells: Mapping[str, str | None]
    ) -> tuple[str | None, Entry] | None:
        """A row with the split that it names; None if something is wrong with it, which is noted."""
        num_errors = self._error_counts.total()
        row_location = table.locate_row(row_number)
        path, label, split, weight, group = (cells.get(name) for name in COLUMNS)
        if path is None:
            self._add_error(row_location, "path is empty; give the image's path, or remove the row", "have no path")
        else:
            self._check_path(table, row_number, path, label or "")
        if label is None:
            self._add_error(row_location, "label is empty; give the image's class, or remove the row", "have no label")
        for name, text in (("label", label), ("group", group)):
            if text is not None and has_control_char(text):
                self._add_error(
                    row_location, f"{name} {text!r} holds a control character; take it out", f"have such a {name}"
                )
            elif text is not None and text != text.strip():
                self._add_error(
                    row_location, f"{name} {text!r} begins or ends with a space; take it away", f"have such a {name}"
                )
        if split is not None and split.lower() not in SPLIT_ALIASES:
            message = f"split {split!r} is none of {', '.join(SPLIT_ALIASES)}; mend it, or leave it empty"
            self._add_error(row_location, message, "have an unknown split")
        parsed_weight = _read_weight(weight) if "weight" in cells else 1.0
        if parsed_weight is None:
            message = f"weight {weight or ''!r} is no number from 0 to {_MAX_WEIGHT:g}; write one such as 0.5"
            self._add_error(row_location, message, "have such a weight")
        if self._error_counts.total() > num_errors or path is None or label is None or parsed_weight is None:
            return None
        normalized_path = str(PurePosixPath(path))
        return split and SPLIT_ALIASES[split.lower()], Entry(
            normalized_path, normalized_path, label, parsed_weight, group
        )

    def _check_path(self, table: Table, row_number: int, path: str, label: str) -> None:
        row_location = table.locate_row(row_number)
        if error := self._find_path_error(path):
            self._add_error(row_location, f"path {path!r} {error}", "have a path that is not there")
            return
        first_row, first_label = self._first_seen.setdefault(
            os.path.normpath(self._base_folder / path), (row_number, label)
        )
        if first_row == row_number:
            return
        if first_label == label:
            message = f"path {path!r} stands twice, first in {table.row_noun} {first_row}; keep one"
        else:
            message = (
                f"path {path!r} has the label {label!r}, and {first_label!r} in {table.row_noun} {first_row}; keep one"
            )
        self._add_error(row_location, message, "have a path that stood before")

    def _find_path_error(self, path: str) -> str | None:
        """Why a path leads to no file; None where it does."""
        try:
            mode = (self.path.parent / path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError is for a NUL
            return f"is not there; {self._suggest_fix(path)}"
        except OSError as error:
            return f"cannot be looked for ({error.strerror}); mend it, or its permissions"
        return None if stat.S_ISREG(mode) else "is no file; mend it, or remove the row"

    def _suggest_fix(self, path: str) -> str:
        """What may help where a path leads to no file."""
        folder = self.path.parent
        if "\\" in path and (folder / path.replace("\\", "/")).is_file():
            return f"write it with slashes, {path.replace(chr(92), '/')!r}"
        if (folder / path.strip()).is_file():
            return "take away the space at its ends"
        for form in ("NFC", "NFD"):
            if (folder / unicodedata.normalize(form, path)).is_file():
                return f"the file's name has its letters composed in another way; write it in Unicode's {form}"
        return "mend it, or remove the row"


def _read_weight(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    weight = float(text)
    return weight if math.isfinite(weight) and 0 <= weight <= _MAX_WEIGHT else None


def _group_by_split(rows: list[tuple[str | None, Entry]]) -> SamplesBySplit:
    """The images by split and class."""
    split_by_group = {entry.group: split for split, entry in rows if split is not None and entry.group is not None}
    default_split = "train" if any(split is not None for split, _ in rows) else "all"
    samples: SamplesBySplit = {}
    for split, entry in sorted(rows, key=lambda row: row[1].path):
        assigned_split = split or split_by_group.get(entry.group or "") or default_split
        samples.setdefault(assigned_split, {}).setdefault(entry.label, []).append(entry)
    return samples
