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

from ftcli.data.entries import SPLIT_OF_NAME, Entry, Listed, holds_control
from ftcli.data.tables import Table, open_table
from ftcli.errors import suggest
from ftcli.recipe.schema.data import MANIFEST_ENDINGS

COLUMNS = ("path", "label", "split", "weight", "group")
"""The columns that are read; the first two must be there. Others are passed over."""

_SHOWN = 10
_HEAVIEST = 1e12
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_manifest(root: Path) -> bool:
    """Whether a root is a manifest, by its name. A folder is none, whatever it is called."""
    return root.suffix.lower() in MANIFEST_ENDINGS and not root.is_dir()


class ManifestScan:
    """The rows of one manifest. Faults gather in `faults`, each begun with `where`."""

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        self.where = where
        self.faults: list[str] = []
        self._counts: Counter[str] = Counter()
        self._seen: dict[str, tuple[int, str]] = {}
        self._base = path.parent.absolute()

    def read(self) -> Listed:
        """The images by split and class, as sorted by path; those without a split are "all" where no row names one.

        Where some do, an image without a split goes where the other images of its group are, else to train. Of faults
        of one kind the first 10 are noted, then their number. Raises DataError for a file that cannot be read.
        """
        table = open_table(self.path, self.where, COLUMNS, self._note)
        if not self._check_header(table):
            return {}
        columns = [name for name in COLUMNS if name in table.header]
        rows: list[tuple[str | None, Entry]] = []
        for number, cells in table.rows(columns):
            row = self._read_row(table, number, dict(zip(columns, cells, strict=True)))
            if row is not None:
                rows.append(row)
        for kind, count in self._counts.items():
            if count > _SHOWN:
                self.faults.append(f"{self.where}: {self.path}: {count - _SHOWN} more rows {kind}")
        if not rows and not self.faults:
            self.faults.append(f"{self.where}: {self.path} lists no image; give it a row for each")
        return _sort(rows)

    def _note(self, place: str, what: str, kind: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= _SHOWN:
            self.faults.append(f"{self.where}: {place}: {what}")

    def _check_header(self, table: Table) -> bool:
        """Whether the columns are there, once each, and none is named almost as one that would be read."""
        faults = [
            f"has no column {name!r}; {suggest(name, table.header)}" for name in COLUMNS[:2] if name not in table.header
        ]
        faults += [f"has the column {name!r} twice; keep one" for name in COLUMNS if table.header.count(name) > 1]
        for name in table.header:
            meant = name.strip().lower().rstrip("s")
            if meant in COLUMNS[2:] and meant not in table.header:
                faults.append(f"has a column {name!r}, which is not read; call it {meant!r}, or something else")
        self.faults += [f"{self.where}: {self.path}: {fault}" for fault in faults]
        return not faults

    def _read_row(self, table: Table, number: int, cells: Mapping[str, str | None]) -> tuple[str | None, Entry] | None:
        """A row with the split that it names; None if something is wrong with it, which is noted."""
        noted = self._counts.total()
        place = table.place(number)
        path, label, split, weight, group = (cells.get(name) for name in COLUMNS)
        if path is None:
            self._note(place, "path is empty; give the image's path, or remove the row", "have no path")
        else:
            self._check_path(table, number, path, label or "")
        if label is None:
            self._note(place, "label is empty; give the image's class, or remove the row", "have no label")
        for name, text in (("label", label), ("group", group)):
            if text is not None and holds_control(text):
                self._note(place, f"{name} {text!r} holds a control character; take it out", f"have such a {name}")
            elif text is not None and text != text.strip():
                self._note(place, f"{name} {text!r} begins or ends with a space; take it away", f"have such a {name}")
        if split is not None and split.lower() not in SPLIT_OF_NAME:
            what = f"split {split!r} is none of {', '.join(SPLIT_OF_NAME)}; mend it, or leave it empty"
            self._note(place, what, "have an unknown split")
        share = _read_weight(weight) if "weight" in cells else 1.0
        if share is None:
            what = f"weight {weight or ''!r} is no number from 0 to {_HEAVIEST:g}; write one such as 0.5"
            self._note(place, what, "have such a weight")
        if self._counts.total() > noted or path is None or label is None or share is None:
            return None
        plain = str(PurePosixPath(path))
        return split and SPLIT_OF_NAME[split.lower()], Entry(plain, plain, label, share, group)

    def _check_path(self, table: Table, number: int, path: str, label: str) -> None:
        place = table.place(number)
        if fault := self._find_fault(path):
            self._note(place, f"path {path!r} {fault}", "have a path that is not there")
            return
        first, before = self._seen.setdefault(os.path.normpath(self._base / path), (number, label))
        if first == number:
            return
        if before == label:
            what = f"path {path!r} stands twice, first in {table.unit} {first}; keep one"
        else:
            what = f"path {path!r} has the label {label!r}, and {before!r} in {table.unit} {first}; keep one"
        self._note(place, what, "have a path that stood before")

    def _find_fault(self, path: str) -> str | None:
        """Why a path leads to no file; None where it does."""
        try:
            mode = (self.path.parent / path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError is for a NUL
            return f"is not there; {self._advise(path)}"
        except OSError as error:
            return f"cannot be looked for ({error.strerror}); mend it, or its permissions"
        return None if stat.S_ISREG(mode) else "is no file; mend it, or remove the row"

    def _advise(self, path: str) -> str:
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
    return weight if math.isfinite(weight) and 0 <= weight <= _HEAVIEST else None


def _sort(rows: list[tuple[str | None, Entry]]) -> Listed:
    """The images by split and class."""
    home_of_group = {entry.group: split for split, entry in rows if split is not None and entry.group is not None}
    pool = "train" if any(split is not None for split, _ in rows) else "all"
    listed: Listed = {}
    for split, entry in sorted(rows, key=lambda row: row[1].path):
        home = split or home_of_group.get(entry.group or "") or pool
        listed.setdefault(home, {}).setdefault(entry.label, []).append(entry)
    return listed
