"""Tables of text: CSV and Parquet files, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ftcli.errors import DataError
from ftcli.results import tell_count

Cells = tuple[str | None, ...]
Fail = Callable[[str, str, str], None]
"""Notes the fault of a row: where it is, what is wrong, and of which kind of rows it is one."""


class Table(Protocol):
    """A table with the names of its columns. `unit` is what its rows are counted in."""

    header: tuple[str, ...]
    unit: str

    def place(self, number: int) -> str:
        """Where a row is, for the beginning of a message."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        """The number of each row and its cells in the named columns; None where a cell holds nothing."""


def open_table(path: Path, where: str, known: Sequence[str], fail: Fail) -> Table:
    """Open a .csv or .tsv (UTF-8, separated by the comma, semicolon or tab that gives its first line the most of the
    known names) or a .parquet file. `fail` is told of rows that cannot be read.

    Raises DataError for a file that is missing, empty or of another kind inside.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _ParquetTable(path, where)
        return _TextTable(path, where, known, fail)
    except FileNotFoundError as error:
        raise DataError(
            f"{where}: {path} is not there; give a manifest with the columns path and label, or a folder"
        ) from error
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read ({error.strerror}); check its permissions") from error


class _TextTable:
    """A CSV file. Lines are counted from 1, the first is the header."""

    unit = "line"

    def __init__(self, path: Path, where: str, known: Sequence[str], fail: Fail) -> None:
        self._path, self._fail = path, fail
        content = path.read_bytes()
        try:
            self._text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{where}: {path}:{line}: is not UTF-8 text; save it as UTF-8") from error
        first = next((line for line in self._text.splitlines() if line.strip()), None)
        if first is None:
            raise DataError(f"{where}: {path} is empty; its first line must name the columns path and label")

        def split_header(delimiter: str) -> list[str]:
            return [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]

        def rate(delimiter: str) -> tuple[int, int]:
            names = split_header(delimiter)
            return sum(name in known for name in names), len(names)

        self._delimiter = max(",;\t", key=rate)
        self.header = tuple(split_header(self._delimiter))

    def place(self, number: int) -> str:
        return f"{self._path}:{number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        indices = [self.header.index(name) for name in columns]
        titled = False
        while True:
            number = reader.line_num + 1  # a cell in quotes may go over several lines
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self._fail(self.place(number), f"cannot be read ({error}); mend its quotes", "cannot be read")
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not titled:
                titled = True
            elif len(cells) != len(self.header):
                fault = (
                    f"has {tell_count(len(cells), 'cell')} where the first line has {len(self.header)}; mend the row"
                )
                self._fail(self.place(number), fault, "have too few or too many cells")
            else:
                yield number, tuple(cells[index] or None for index in indices)


class _ParquetTable:
    """A Parquet file. Rows are counted from 1."""

    unit = "row"

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        with path.open("rb"):  # what keeps it from being opened is told by whoever called
            pass
        self._schema = self._ask(lambda file: file.schema_arrow)
        self.header = tuple(self._schema.names)

    def place(self, number: int) -> str:
        return f"{self._path}: row {number}"

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        if faults := [fault for name in columns if (fault := self._find_fault(name))]:
            raise DataError(*faults)
        # One thread: more would be there when the processes that load images are forked.
        table = self._ask(lambda file: file.read(columns=list(columns), use_threads=False))
        lists = [table.column(name).to_pylist() for name in columns]
        for number, values in enumerate(zip(*lists, strict=True), 1):
            yield number, tuple(None if value is None or value == "" else str(value) for value in values)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Put a question to the open file."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as error:
            raise DataError(
                f"{self._where}: {self._path} needs the package pyarrow; pip install 'ftcli[parquet]'"
            ) from error
        try:
            with ParquetFile(self._path) as file:
                return question(file)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self._where}: {self._path} is no Parquet file that can be read ({reason}); write it anew"
            ) from error

    def _find_fault(self, name: str) -> str | None:
        kind = self._schema.field(name).type
        value = str(kind.value_type) if str(kind).startswith("dictionary") else str(kind)
        wanted, fitting = _KINDS.get(name, ("text or whole numbers", (*_TEXT, *_WHOLE)))
        if value in fitting or value == "null":
            return None
        return f"{self._where}: {self._path}: the column {name!r} holds {kind}; make it {wanted}"


_TEXT = ("string", "large_string", "string_view")
_WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_KINDS = {"path": ("text", _TEXT), "weight": ("numbers", (*_WHOLE, "halffloat", "float", "double"))}
