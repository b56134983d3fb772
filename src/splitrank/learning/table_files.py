"""Tables from files: CSV, TSV, JSON lines and Parquet, read whole, with every flaw traced to its line.

CSV and TSV follow RFC 4180 in UTF-8 (a byte order mark is allowed) and are read with the standard library's strict
reader rather than pandas, because pandas pads short lines with missing values, takes a surplus first column for an
index, and turns "NA" into nothing.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrank.errors import InputError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")

_CLASS_NUMBER = re.compile(r"\s*\d+\s*")


@dataclass(frozen=True)
class Table:
    """Columns of equal length and where each row came from.

    Args:
        name: the file (absolute path) or the hub's name and split, for messages.
        column_names: all columns there are, in order.
        columns: values by column name; holds at least the wanted columns that exist.
        unit: what ``numbers`` count, ``"line"`` of a text file or ``"row"``.
        numbers: for each row the line on which it starts, or its number, from 1.
        headerless: the file had no header and the column names are ours.
    """

    name: str
    column_names: list[str]
    columns: dict[str, list[Any]]
    unit: str
    numbers: Sequence[int]
    headerless: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, indices: Sequence[int]) -> str:
        """Name up to three rows and count the rest: ``"lines 3, 7 and 9 (and 2 more)"``."""
        shown = [str(self.numbers[index]) for index in indices[:3]]
        listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
        more = f" (and {len(indices) - 3} more)" if len(indices) > 3 else ""
        return f"{self.unit}{'s' if len(indices) > 1 else ''} {listed}{more}"


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read one file by its ending.

    Args:
        path: a file that ends in one of ``ENDINGS``.
        wanted: columns that the caller needs. A first line that holds them all is a header whatever it looks like,
            and Parquet reads no other column.

    Raises:
        InputError: unknown ending, unreadable or empty file, malformed line, bytes that are not UTF-8.
    """
    readers: dict[str, Callable[[Path, Sequence[str]], Table]] = {
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": _read_json_lines,
        ".parquet": _read_parquet,
    }
    path = path.absolute()
    if path.suffix not in readers:
        raise InputError(
            f"{path}: the file must end in one of {', '.join(ENDINGS)}, got {path.suffix or 'no ending'!r}"
        )
    try:
        table = readers[path.suffix](path, wanted)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}") from error
    if len(table) == 0:
        raise InputError(f"{path}: the file must hold at least one row of data, got none")
    return table


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: the file must be UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start}; "
            f"convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from None
    if not text.strip():
        raise InputError(f"{path}: the file must hold at least one row of data, got an empty file")
    return text


def _read_delimited(path: Path, wanted: Sequence[str]) -> Table:
    records, lines = _records(path, "," if path.suffix == ".csv" else "\t")
    headerless = _is_headerless(records, wanted)
    if headerless:
        names = _names_without_header(len(records[0]))
    else:
        names = [name.strip() for name in records.pop(0)]
        lines.pop(0)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InputError(f"{path}, line 1: column names must differ, got {repeated[0]!r} more than once")
    columns = {name: [record[index] for record in records] for index, name in enumerate(names)}
    return Table(str(path), names, columns, "line", lines, headerless)


def _records(path: Path, delimiter: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    lines: list[int] = []
    start = 1
    old_limit = csv.field_size_limit(sys.maxsize)  # the default stops a long text with a message nobody understands
    try:
        for record in reader:
            if record:  # an empty list is a blank line
                if records and len(record) != len(records[0]):
                    raise InputError(
                        f"{path}, line {start}: every line must have {len(records[0])} fields like the first, got "
                        f"{len(record)}; put a text that holds the separator or a line break in double quotes"
                    )
                records.append(record)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: the record that starts here is malformed ({error}); close every double quote and "
            'write a double quote inside a quoted text twice ("")'
        ) from None
    finally:
        csv.field_size_limit(old_limit)
    return records, lines


def _is_headerless(records: list[list[str]], wanted: Sequence[str]) -> bool:
    """AG News's form: every line starts with a whole number, and the first line goes on with texts, not numbers."""
    first = [cell.strip() for cell in records[0]]
    if len(first) < 2 or all(name in first for name in wanted):
        return False
    texts = all(cell and not _CLASS_NUMBER.fullmatch(cell) for cell in first[1:])
    return texts and all(_CLASS_NUMBER.fullmatch(record[0]) for record in records)


def _names_without_header(num_columns: int) -> list[str]:
    if num_columns == 2:
        return ["label", "text"]
    if num_columns == 3:
        return ["label", "title", "description"]
    return ["label", *(f"text{index}" for index in range(1, num_columns))]


def _read_json_lines(path: Path, wanted: Sequence[str]) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: the line must be one JSON object: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: the line must be one JSON object, got {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in wanted}
    return Table(str(path), names, columns, "line", lines)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file must hold at least one row of data, got an empty file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = [name for name in wanted if names.count(name) > 1]
            if twice:
                raise InputError(f"{path}: a column name must stand once, got {twice[0]!r} more than once; rename one")
            content = file.read(columns=[name for name in names if name in wanted])
            num_rows = file.metadata.num_rows
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: the file must be Parquet: {reason}; write it again") from None
    columns = {name: content.column(name).to_pylist() for name in content.column_names}
    return Table(str(path), names, columns, "row", range(1, num_rows + 1))
