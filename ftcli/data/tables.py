"""Tables of text: CSV and Parquet files, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ftcli.errors import DataError
from ftcli.results import format_count

Cells = tuple[str | None, ...]
RowErrorCallback = Callable[[str, str, str], None]
"""Notes the fault of a row: where it is, what is wrong, and of which kind of rows it is one."""


class Table(Protocol):
    """A table with the names of its columns. `unit` is what its rows are counted in."""

    header: tuple[str, ...]
    row_noun: str

    def locate_row(self, row_number: int) -> str:
        """Where a row is, for the beginning of a message."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        """The number of each row and its cells in the named columns; None where a cell holds nothing."""


def open_table(path: Path, location: str, known_columns: Sequence[str], add_error: RowErrorCallback) -> Table:
    """Open a .csv or .tsv (UTF-8, separated by the comma, semicolon or tab that gives its first line the most of the
    known names) or a .parquet file. `fail` is told of rows that cannot be read.

    Raises DataError for a file that is missing, empty or of another kind inside.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _ParquetTable(path, location)
        return _TextTable(path, location, known_columns, add_error)
    except FileNotFoundError as error:
        raise DataError(
            f"{location}: {path} is not there; give a manifest with the columns path and label, or a folder"
        ) from error
    except OSError as error:
        raise DataError(f"{location}: {path} cannot be read ({error.strerror}); check its permissions") from error


class _TextTable:
    """A CSV file. Lines are counted from 1, the first is the header."""

    row_noun = "line"

    def __init__(self, path: Path, location: str, known_columns: Sequence[str], add_error: RowErrorCallback) -> None:
        self._path, self._add_error = path, add_error
        content = path.read_bytes()
        try:
            self._text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{location}: {path}:{line}: is not UTF-8 text; save it as UTF-8") from error
        header_line = next((line for line in self._text.splitlines() if line.strip()), None)
        if header_line is None:
            raise DataError(f"{location}: {path} is empty; its first line must name the columns path and label")

        def split_header(delimiter: str) -> list[str]:
            return [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter))]

        def score_delimiter(delimiter: str) -> tuple[int, int]:
            names = split_header(delimiter)
            return sum(name in known_columns for name in names), len(names)

        self._delimiter = max(",;\t", key=score_delimiter)
        self.header = tuple(split_header(self._delimiter))

    def locate_row(self, row_number: int) -> str:
        return f"{self._path}:{row_number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        indices = [self.header.index(name) for name in columns]
        has_header = False
        while True:
            row_number = reader.line_num + 1  # a cell in quotes may go over several lines
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self._add_error(
                    self.locate_row(row_number), f"cannot be read ({error}); mend its quotes", "cannot be read"
                )
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not has_header:
                has_header = True
            elif len(cells) != len(self.header):
                message = (
                    f"has {format_count(len(cells), 'cell')} where the first line has {len(self.header)}; mend the row"
                )
                self._add_error(self.locate_row(row_number), message, "have too few or too many cells")
            else:
                yield row_number, tuple(cells[index] or None for index in indices)


class _ParquetTable:
    """A Parquet file. Rows are counted from 1."""

    row_noun = "row"

    def __init__(self, path: Path, location: str) -> None:
        self._path, self._location = path, location
        with path.open("rb"):  # what keeps it from being opened is told by whoever called
            pass
        self._schema = self._query_file(lambda file: file.schema_arrow)
        self.header = tuple(self._schema.names)

    def locate_row(self, row_number: int) -> str:
        return f"{self._path}: row {row_number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        if errors := [error for name in columns if (error := self._find_type_error(name))]:
            raise DataError(*errors)
        # One thread: more would be there when the processes that load images are forked.
        table = self._query_file(lambda file: file.read(columns=list(columns), use_threads=False))
        lists = [table.column(name).to_pylist() for name in columns]
        for row_number, values in enumerate(zip(*lists, strict=True), 1):
            yield row_number, tuple(None if value is None or value == "" else str(value) for value in values)

    def _query_file(self, query: Callable[[Any], Any]) -> Any:
        """Put a question to the open file."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as error:
            raise DataError(
                f"{self._location}: {self._path} needs the package pyarrow; pip install 'ftcli[parquet]'"
            ) from error
        try:
            with ParquetFile(self._path) as file:
                return query(file)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self._location}: {self._path} is no Parquet file that can be read ({reason}); write it anew"
            ) from error

    def _find_type_error(self, name: str) -> str | None:
        arrow_type = self._schema.field(name).type
        value_type = str(arrow_type.value_type) if str(arrow_type).startswith("dictionary") else str(arrow_type)
        expected, allowed = _COLUMN_TYPES.get(name, ("text or whole numbers", (*_TEXT_TYPES, *_INTEGER_TYPES)))
        if value_type in allowed or value_type == "null":
            return None
        return f"{self._location}: {self._path}: the column {name!r} holds {arrow_type}; make it {expected}"


_TEXT_TYPES = ("string", "large_string", "string_view")
_INTEGER_TYPES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_COLUMN_TYPES = {
    "path": ("text", _TEXT_TYPES),
    "weight": ("numbers", (*_INTEGER_TYPES, "halffloat", "float", "double")),
}
