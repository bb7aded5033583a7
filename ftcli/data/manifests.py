"""Manifests: CSV and Parquet files that list images with their class and, optionally, split, weight and group."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ftcli.data.samples import SPLIT_ALIASES, Sample, SamplesBySplit, has_control_char
from ftcli.errors import ErrorList, install_hint, suggest
from ftcli.recipe.schema.data import MANIFEST_SUFFIXES
from ftcli.results import format_count

COLUMNS = ("path", "label", "split", "weight", "group")
"""The columns that are read; the first two are required. Others are ignored."""

_MAX_WEIGHT = 1e12
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

_TEXT_TYPES = ("string", "large_string", "string_view")
_INTEGER_TYPES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_PARQUET_TYPES = {
    "path": ("text", _TEXT_TYPES),
    "weight": ("numbers", (*_INTEGER_TYPES, "halffloat", "float", "double")),
}
"""Column -> its required type in words and the Arrow types accepted. Other columns may be text or whole numbers."""

_Row = tuple[str | None, str, Sample]
"""The split if the row has one, the class, and the sample."""


def is_manifest(root: Path) -> bool:
    """Return whether a root is a manifest, by its extension. A folder is not, whatever its name."""
    return root.suffix.lower() in MANIFEST_SUFFIXES and not root.is_dir()


def read_manifest(path: Path, errors: ErrorList) -> SamplesBySplit:
    """Read the samples of a manifest by split and class, sorted by path. Errors are added to `errors`.

    CSV files are UTF-8 text; the delimiter is the comma, semicolon or tab that finds the most known columns in the
    header. Without splits, all samples are in the split "all". If some rows have one, a row without is in the split of
    its group, else in train.
    """
    return _ManifestReader(path, errors).read()


class _ManifestReader:
    def __init__(self, path: Path, errors: ErrorList) -> None:
        self._path = path
        self._errors = errors
        self._first_seen: dict[str, tuple[int, str]] = {}
        self._base_folder = path.parent.absolute()

    def read(self) -> SamplesBySplit:
        num_errors = len(self._errors)
        try:
            table = _open_table(self._path, self._add_row_error)
            if not self._check_header(table):
                return {}
            columns = [name for name in COLUMNS if name in table.header]
            rows = [
                row
                for number, cells in table.rows(columns)
                if (row := self._read_row(table, number, dict(zip(columns, cells, strict=True)))) is not None
            ]
        except _TableError as error:
            for message in error.args:
                self._errors.add(f"{self._path}{message}")
            return {}
        if not rows and len(self._errors) == num_errors:
            self._errors.add(f"{self._path} lists no image; add a row for each image")
        return _group_by_split(rows)

    def _add_row_error(self, row_location: str, message: str, kind: str) -> None:
        self._errors.add(f"{row_location}: {message}", f"rows of {self._path} {kind}")

    def _check_header(self, table: _Table) -> bool:
        """Return whether the columns are present, once each, and no name is a misspelled optional column."""
        messages = [
            f"has no column {name!r}; {suggest(name, table.header)}" for name in COLUMNS[:2] if name not in table.header
        ]
        messages += [f"has the column {name!r} twice; keep one" for name in COLUMNS if table.header.count(name) > 1]
        for name in table.header:
            column = name.strip().lower().rstrip("s")
            if column in COLUMNS[2:] and column not in table.header:
                messages.append(
                    f"has an unknown column {name!r}; rename it to {column!r}, or to a name that does not resemble a "
                    "known column"
                )
        for message in messages:
            self._errors.add(f"{self._path}: {message}")
        return not messages

    def _read_row(self, table: _Table, row_number: int, cells: Mapping[str, str | None]) -> _Row | None:
        """Read a row; return None if it has an error."""
        num_errors = len(self._errors)
        row_location = table.locate_row(row_number)
        path, label, split, weight, group = (cells.get(name) for name in COLUMNS)
        if path is None:
            self._add_row_error(row_location, "path is empty; give the image's path, or remove the row", "have no path")
        else:
            self._check_path(table, row_number, path, label or "")
        if label is None:
            message = "label is empty; give the image's class, or remove the row"
            self._add_row_error(row_location, message, "have no label")
        for name, text in (("label", label), ("group", group)):
            if text is not None and has_control_char(text):
                message = f"{name} {text!r} contains a control character; remove it"
                self._add_row_error(row_location, message, f"have an invalid {name}")
            elif text is not None and text != text.strip():
                message = f"{name} {text!r} begins or ends with a space; remove it"
                self._add_row_error(row_location, message, f"have an invalid {name}")
        if split is not None and split.lower() not in SPLIT_ALIASES:
            message = f"unknown split {split!r}; use {', '.join(SPLIT_ALIASES)}, or leave it empty"
            self._add_row_error(row_location, message, "have an unknown split")
        parsed_weight = _parse_weight(weight) if "weight" in cells else 1.0
        if parsed_weight is None:
            message = f"weight {weight or ''!r} is not a number from 0 to {_MAX_WEIGHT:g}; write one such as 0.5"
            self._add_row_error(row_location, message, "have an invalid weight")
        if len(self._errors) > num_errors or path is None or label is None or parsed_weight is None:
            return None
        path = str(PurePosixPath(path))
        sample = Sample(path, weight=parsed_weight, group=group, path_in_class=path)
        return split and SPLIT_ALIASES[split.lower()], label, sample

    def _check_path(self, table: _Table, row_number: int, path: str, label: str) -> None:
        row_location = table.locate_row(row_number)
        if error := self._find_path_error(path):
            self._add_row_error(row_location, f"path {path!r} {error}", "have an invalid path")
            return
        first_row, first_label = self._first_seen.setdefault(
            os.path.normpath(self._base_folder / path), (row_number, label)
        )
        if first_row == row_number:
            return
        first_location = f"{table.row_noun} {first_row}"
        if first_label == label:
            message = f"path {path!r} occurs twice, first in {first_location}; keep one"
        else:
            message = f"path {path!r} has the label {label!r}, and {first_label!r} in {first_location}; keep one"
        self._add_row_error(row_location, message, "repeat a path")

    def _find_path_error(self, path: str) -> str | None:
        """Return the error of a path that is not that of a file, else None."""
        try:
            mode = (self._path.parent / path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the path contains a NUL
            return f"does not exist; {self._suggest_path_fix(path)}"
        except OSError as error:
            return f"cannot be checked ({error.strerror}); correct it, or its permissions"
        return None if stat.S_ISREG(mode) else "is not a file; correct it, or remove the row"

    def _suggest_path_fix(self, path: str) -> str:
        folder = self._path.parent
        if "\\" in path and (folder / path.replace("\\", "/")).is_file():
            return f"write it with slashes, {path.replace(chr(92), '/')!r}"
        if (folder / path.strip()).is_file():
            return "remove the space at its ends"
        for form in ("NFC", "NFD"):
            if (folder / unicodedata.normalize(form, path)).is_file():
                return f"the file's name is in another Unicode normalization; write the path in {form}"
        return "correct it, or remove the row"


def _parse_weight(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    weight = float(text)
    return weight if math.isfinite(weight) and 0 <= weight <= _MAX_WEIGHT else None


def _group_by_split(rows: Sequence[_Row]) -> SamplesBySplit:
    split_by_group = {sample.group: split for split, _, sample in rows if split and sample.group is not None}
    default_split = "train" if any(split for split, _, _ in rows) else "all"
    samples: SamplesBySplit = {}
    for split, label, sample in sorted(rows, key=lambda row: row[2].path):
        assigned_split = split or split_by_group.get(sample.group or "") or default_split
        samples.setdefault(assigned_split, {}).setdefault(label, []).append(sample)
    return samples


_Cells = tuple[str | None, ...]
_AddRowError = Callable[[str, str, str], None]
"""Called with the row's location, the message, and the kind of error, as in "have no path"."""


class _TableError(Exception):
    """A table that cannot be read. Its arguments are messages without the path."""


class _Table(Protocol):
    """A table with the names of its columns. `row_noun` is "line" or "row"."""

    header: tuple[str, ...]
    row_noun: str

    def locate_row(self, row_number: int) -> str:
        """Return the location of a row for messages."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, _Cells]]:
        """Yield the number of each row and its cells in these columns, None for an empty cell."""


def _open_table(path: Path, add_row_error: _AddRowError) -> _Table:
    try:
        return _ParquetTable(path) if path.suffix.lower() == ".parquet" else _CsvTable(path, add_row_error)
    except FileNotFoundError as error:
        raise _TableError(" does not exist; give a manifest with the columns path and label, or a folder") from error
    except OSError as error:
        raise _TableError(f" cannot be read ({error.strerror}); check its permissions") from error


class _CsvTable:
    """A CSV file. Lines are counted from 1; the first is the header."""

    row_noun = "line"

    def __init__(self, path: Path, add_row_error: _AddRowError) -> None:
        self._path, self._add_row_error = path, add_row_error
        content = path.read_bytes()
        try:
            self._text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise _TableError(f":{line}: is not UTF-8 text; save it as UTF-8") from error
        header_line = next((line for line in self._text.splitlines() if line.strip()), None)
        if header_line is None:
            raise _TableError(" is empty; its first line must name the columns path and label")

        def split_header(delimiter: str) -> list[str]:
            return [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter))]

        def score_delimiter(delimiter: str) -> tuple[int, int]:
            names = split_header(delimiter)
            return sum(name in COLUMNS for name in names), len(names)

        self._delimiter = max(",;\t", key=score_delimiter)
        self.header = tuple(split_header(self._delimiter))

    def locate_row(self, row_number: int) -> str:
        return f"{self._path}:{row_number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, _Cells]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        indices = [self.header.index(name) for name in columns]
        has_header = False
        while True:
            row_number = reader.line_num + 1  # a quoted cell may span several lines
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"cannot be read ({error}); correct its quotes"
                self._add_row_error(self.locate_row(row_number), message, "cannot be read")
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not has_header:
                has_header = True
            elif len(cells) != len(self.header):
                num_cells = format_count(len(cells), "cell")
                message = f"has {num_cells}, but the first line has {len(self.header)}; correct the row"
                self._add_row_error(self.locate_row(row_number), message, "have too few or too many cells")
            else:
                yield row_number, tuple(cells[index] or None for index in indices)


class _ParquetTable:
    """A Parquet file. Rows are counted from 1."""

    row_noun = "row"

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb"):  # raises OSError, as for CSV files
            pass
        self._schema = self._query_file(lambda file: file.schema_arrow)
        self.header = tuple(self._schema.names)

    def locate_row(self, row_number: int) -> str:
        return f"{self._path}: row {row_number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, _Cells]]:
        if messages := [message for name in columns if (message := self._find_type_error(name))]:
            raise _TableError(*messages)
        # In one thread: pyarrow's would still run when the worker processes are forked.
        table = self._query_file(lambda file: file.read(columns=list(columns), use_threads=False))
        lists = [table.column(name).to_pylist() for name in columns]
        for row_number, values in enumerate(zip(*lists, strict=True), 1):
            yield row_number, tuple(None if value is None or value == "" else str(value) for value in values)

    def _query_file(self, query: Callable[[Any], Any]) -> Any:
        """Return what `query` returns for the open pyarrow ParquetFile."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as error:
            raise _TableError(f" needs the package pyarrow; {install_hint('parquet')}") from error
        try:
            with ParquetFile(self._path) as file:
                return query(file)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise _TableError(f" is not a readable Parquet file ({reason}); write it again") from error

    def _find_type_error(self, name: str) -> str | None:
        arrow_type = self._schema.field(name).type
        value_type = str(arrow_type.value_type) if str(arrow_type).startswith("dictionary") else str(arrow_type)
        expected, allowed = _PARQUET_TYPES.get(name, ("text or whole numbers", (*_TEXT_TYPES, *_INTEGER_TYPES)))
        if value_type in allowed or value_type == "null":
            return None
        return f": column {name!r} has the type {arrow_type}; make it {expected}"
