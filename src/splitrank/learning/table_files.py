"""Tables from files: CSV, TSV, JSON and Parquet, gzipped or not, read whole, with every flaw traced to its line.

The standard library reads them rather than pandas, because pandas pads short lines with missing values, takes a
surplus first column for an index, and turns "NA" into nothing. ``delimited.py`` finds separator and quoting.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitrank.errors import InputError
from splitrank.learning.delimited import read_delimited
from splitrank.learning.table import Table, TableFormat

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".ndjson", ".json")
ENDINGS_TEXT = f"{', '.join(ENDINGS)} (each also with .gz)"

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# Byte order marks, the longer first: UTF-32's begins with UTF-16's.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ENCODINGS_TO_TRY = 'data.encoding = "gb18030", "windows-1251", "windows-1252" or whatever wrote it'


def split_name(name: str) -> tuple[str, str]:
    """Return a file's name without its ending, and the ending in lower case without ``.gz``; "" where none is known."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    stem, dot, ending = plain.rpartition(".")
    known = f".{ending.lower()}"
    return (stem, known) if dot and known in ENDINGS else (name, "")


def read_table(path: Path, wanted: Sequence[str], form: TableFormat | None = None) -> Table:
    """Read one file by its ending.

    Args:
        path: a file that ends in one of ``ENDINGS``, in capitals or not, or in one of them and ``.gz``.
        wanted: columns that the caller needs, the label's last. A first line that holds them all is a header whatever
            it looks like, and only they must have a name of their own.
        form: what the file does not say of itself; nothing if None.

    Raises:
        InputError: unknown ending, unreadable or empty file, malformed line, bytes whose encoding is not known.
    """
    path, form = path.absolute(), form or TableFormat()
    ending = split_name(path.name)[1]
    if not ending:
        got = repr(path.suffix or "no ending")
        raise InputError(f"{path}: the file must end in one of {ENDINGS_TEXT}, got {got}")
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the file must be whole and compressed by gzip: {error}; compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path}: the file must hold at least one row of data, got an empty file")
    if ending == ".parquet":
        table = _read_parquet(path, data, wanted)
    elif ending in _SEPARATORS:
        table = read_delimited(_decoded(path, data, form), str(path), _SEPARATORS[ending], wanted, form)
    else:
        read: Callable[[Path, str, Sequence[str]], Table] = _read_json if ending == ".json" else _read_json_lines
        table = read(path, _decoded(path, data, form), wanted)
    if len(table) == 0:
        raise InputError(f"{path}: the file must hold at least one row of data, got none")
    return table


def _decoded(path: Path, data: bytes, form: TableFormat) -> str:
    """Return a file's text: by its byte order mark, else by the encoding that is given, else UTF-8 and nothing else."""
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    encoding = marked or form.encoding or "utf-8"
    if not marked and not form.encoding and b"\0" in data[:2]:
        raise InputError(
            f"{path}: the file must be UTF-8 or begin with a byte order mark, got zero bytes as of UTF-16 without one; "
            'name it, such as data.encoding = "utf-16-le"'
        )
    try:
        text = data.decode(encoding)
    except LookupError:
        raise InputError(f'data.encoding must be one that Python knows, such as "gb18030", got {encoding!r}') from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where, what = f"{path}, line {line}", f"byte 0x{data[error.start]:02x} at offset {error.start}"
        if marked or form.encoding:
            raise InputError(f"{where}: the file must be {encoding}, got {what}; check data.encoding") from None
        raise InputError(
            f"{where}: the file must be UTF-8, got {what}, and bytes alone do not tell which encoding they are in; "
            f"name it: {_ENCODINGS_TO_TRY}"
        ) from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise InputError(f"{path}: the file must hold at least one row of data, got an empty file")
    return text


def _read_json(path: Path, text: str, wanted: Sequence[str]) -> Table:
    """Read an array of objects, or what many call .json, too: an object on each line."""
    if not text.lstrip().startswith("["):
        return _read_json_lines(path, text, wanted)
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: the file must be a JSON array of objects: {error}") from None
    strange = [number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)]
    if strange:
        kind = type(rows[strange[0] - 1]).__name__
        raise InputError(f"{path}, row {strange[0]}: a row must be a JSON object, got {kind}")
    return _of_objects(path, rows, "row", range(1, len(rows) + 1), wanted)


def _read_json_lines(path: Path, text: str, wanted: Sequence[str]) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            hint = "" if split_name(path.name)[1] != ".json" else ", or the whole file an array of objects"
            raise InputError(f"{path}, line {number}: the line must be one JSON object{hint}: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: the line must be one JSON object, got {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    return _of_objects(path, rows, "line", lines, wanted)


def _of_objects(
    path: Path, rows: list[dict[str, Any]], unit: str, numbers: Sequence[int], wanted: Sequence[str]
) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in wanted}
    return Table(str(path), names, columns, unit, numbers)


def _read_parquet(path: Path, data: bytes, wanted: Sequence[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(data)) as file:
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
