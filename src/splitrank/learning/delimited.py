"""CSV, TSV and their kin, of which there are many dialects: the file itself is looked at, and doubt is an error.

Quotes wrap fields (RFC 4180), unless the file is tab-separated and its lines show that they are characters: such files
are common and never quoted. A wrapped field may span lines; a row of a file without wrapping is one line.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splitrank.errors import InputError
from splitrank.learning.table import Table, TableFormat

AG_NEWS_COLUMNS = ("label", "title", "description")
"""Columns of AG News, which is published without a header."""

SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

_CLASS_NUMBER = re.compile(r"\s*\d+\s*")
_EXCELS_HINT = re.compile(r"sep=([^\r\n])\r?\n", re.IGNORECASE)
# Lines that no quoting explains must be this many times as many as those it would, for quotes to be characters: of
# 4,076 rows of GLUE's MRPC, which has no quoting, some hold a sentence that is wholly in quotes.
_CLEAR_MAJORITY = 4


@dataclass
class _Reading:
    """One way to read a file.

    Attributes:
        rows, lines: the records, and the line on which each starts, from 1.
        spanning: indices of records that go over several lines.
        problem: why it cannot be read in this way; the rows are then incomplete.
    """

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    spanning: list[int] = field(default_factory=list)
    problem: str | None = None


def read_delimited(text: str, name: str, usual: str, wanted: Sequence[str], form: TableFormat) -> Table:
    """Read the text of a CSV or TSV file.

    Args:
        text: all of it.
        name: the file, for messages.
        usual: the separator that its ending promises.
        wanted: columns that the caller needs, the label's last.
        form: what the file does not say of itself.

    Raises:
        InputError: a malformed line, or a dialect that the file leaves open.
    """
    hint = _EXCELS_HINT.match(text)
    if hint:
        text = "\n" + text[hint.end() :]  # a blank line, so that lines keep their numbers
    separator = form.separator or (hint[1] if hint else _separator(text, name, usual, wanted, form))
    notes = []
    if separator != usual:
        shown = SEPARATOR_NAMES.get(separator, repr(separator))
        notes.append(f"{Path(name).name} is separated by {shown}, not by {SEPARATOR_NAMES[usual]}")
    reading, more = _records(text, name, separator, len(form.columns) if form.columns else None)
    notes += more
    names, names_from, first = _column_names(reading, name, wanted, form)
    rows, lines = reading.rows[first:], reading.lines[first:]
    label = names.index(wanted[-1]) if wanted and wanted[-1] in names else None
    if reading.spanning and label is not None:
        _check_nothing_swallowed(reading, text, name, separator, label)
    needed = [name for name in names if name and (name in wanted or names_from != "header")]
    columns = {name: [row[index] for row in rows] for index, name in enumerate(names) if name in needed}
    notes += _unnamed(rows, names, name)
    texts: tuple[str, ...] = ("text",)
    if names_from == "us" or (tuple(names) == AG_NEWS_COLUMNS and names_from == "settings"):
        texts = tuple(names[1:])
    return Table(name, [name for name in names if name], columns, "line", lines, names_from, texts, tuple(notes))


def _separator(text: str, name: str, usual: str, wanted: Sequence[str], form: TableFormat) -> str:
    """Return the usual separator unless the first line shows plainly that it is another."""
    first = next(line for line in _physical_lines(text) if line.strip())
    fields = {one: [cell.strip() for cell in next(csv.reader([first], delimiter=one))] for one in SEPARATOR_NAMES}
    others = [one for one in fields if one != usual]
    if form.columns is None and not set(wanted) <= set(fields[usual]):
        holding = [one for one in others if set(wanted) <= set(fields[one])]
        if len(holding) == 1:
            return holding[0]
    if len(fields[usual]) > 1:
        return usual
    several = [one for one in others if len(fields[one]) > 1]
    if len(several) > 1:
        listed = " and ".join(repr(one) for one in several)
        raise InputError(
            f"{name}, line 1: fields must be separated by {usual!r} or plainly by something else, got {listed} in it; "
            f"name it: data.separator = {several[0]!r}"
        )
    return several[0] if several else usual


def _records(text: str, name: str, separator: str, width: int | None) -> tuple[_Reading, list[str]]:
    """Read with quotes that wrap, or as characters where the lines of a tab-separated file show that they are."""
    wrapped = _read_wrapped(text, separator, width)
    if wrapped.problem is None and not wrapped.spanning:
        return wrapped, []
    if separator == "\t":
        literal = _read_literally(text, separator, width)
        if literal.problem is None:
            evidence = _Quotes.of(text, separator)
            may_span = wrapped.problem is None and len(wrapped.rows[0]) == 1  # no tab can tell
            if evidence.are_characters and not may_span:
                return literal, [f"{Path(name).name} has no quoting: its quotes are characters"]
            raise InputError(
                f"{name}, line {evidence.first_not_wrapped}: quotes must wrap whole fields on every line or on none, "
                f"got {evidence.num_wrapped:,} lines where they do and {evidence.num_not_wrapped:,} like this one; "
                'end the field with a quote and write a quote inside it twice (""), or write the file as .jsonl'
            )
        if wrapped.problem and not _Quotes.of(text, separator).num_wrapped:
            raise InputError(f"{name}, {literal.problem}")
    if wrapped.problem:
        raise InputError(f"{name}, {wrapped.problem}")
    return wrapped, []


def _read_wrapped(text: str, separator: str, width: int | None) -> _Reading:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    reading, named, start, like = _Reading(), 0, 1, "the first" if width is None else "data.columns"
    old_limit = csv.field_size_limit(sys.maxsize)  # the default stops a long text with a message nobody understands
    try:
        for record in reader:
            if record:  # an empty list is a blank line
                if width is None:
                    width, named = len(record), _num_named(record)
                if len(record) != width:
                    fitted = _fitted(record, width, named or width)
                    if fitted is None:
                        reading.problem = _uneven(start, width, len(record), like)
                        break
                    record = fitted
                if reader.line_num != start:
                    reading.spanning.append(len(reading.rows))
                reading.rows.append(record)
                reading.lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        reading.problem = (
            f"line {start}: the record that starts here is malformed ({error}); close every double quote and write a "
            'double quote inside a quoted text twice ("")'
        )
    finally:
        csv.field_size_limit(old_limit)
    return reading


def _read_literally(text: str, separator: str, width: int | None) -> _Reading:
    reading, named, like = _Reading(), 0, "the first" if width is None else "data.columns"
    for number, line in enumerate(_physical_lines(text), start=1):
        if not line:
            continue
        record = line.split(separator)
        if width is None:
            width, named = len(record), _num_named(record)
        fitted = record if len(record) == width else _fitted(record, width, named or width)
        if fitted is None:
            reading.problem = _uneven(number, width, len(record), like)
            break
        reading.rows.append(fitted)
        reading.lines.append(number)
    return reading


def _physical_lines(text: str) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in io.StringIO(text, newline=""))


def _num_named(header: Sequence[str]) -> int:
    """Return how many fields there are up to the last that has a name: spreadsheets add empty ones behind."""
    return max((index + 1 for index, cell in enumerate(header) if cell.strip()), default=0)


def _fitted(record: list[str], width: int, named: int) -> list[str] | None:
    """Return a record with as many fields as the first, if it differs only by empty ones behind all named columns."""
    if len(record) < named or any(cell.strip() for cell in record[named:]):
        return None
    return record[:width] + [""] * (width - len(record))


def _uneven(line: int, width: int, found: int, like: str) -> str:
    return (
        f"line {line}: every line must have {width} fields like {like}, got {found}; put a text that holds the "
        "separator or a line break in double quotes, or name the separator with data.separator"
    )


@dataclass(frozen=True)
class _Quotes:
    """The use of quotes in a file, by its lines: counts of those on which a field begins with one.

    Attributes:
        num_wrapped: lines on which every such field ends with a quote, too, and quotes inside it are doubled.
        num_not_wrapped: the other such lines.
        first_not_wrapped: number of the first of these; 0 if there is none.
        has_doubled: a wrapped field holds a doubled quote, as only a program writes it.
    """

    num_wrapped: int
    num_not_wrapped: int
    first_not_wrapped: int
    has_doubled: bool

    @classmethod
    def of(cls, text: str, separator: str) -> _Quotes:
        """Look at each line by itself."""
        num_wrapped = num_not_wrapped = first = 0
        has_doubled = False
        for number, line in enumerate(_physical_lines(text), start=1):
            starting = [cell for cell in line.split(separator) if cell.startswith('"')]
            if not starting:
                continue
            if all(len(cell) > 1 and cell.endswith('"') and _is_doubled(cell[1:-1]) for cell in starting):
                num_wrapped += 1
                has_doubled |= any('""' in cell[1:-1] for cell in starting)
            else:
                num_not_wrapped += 1
                first = first or number
        return cls(num_wrapped, num_not_wrapped, first, has_doubled)

    @property
    def are_characters(self) -> bool:
        """Return whether quotes are characters of the texts, which nothing but wrapped fields speaks against."""
        return not self.has_doubled and self.num_not_wrapped >= max(1, _CLEAR_MAJORITY * self.num_wrapped)


def _is_doubled(inside: str) -> bool:
    return '"' not in inside.replace('""', "")


def _column_names(reading: _Reading, name: str, wanted: Sequence[str], form: TableFormat) -> tuple[list[str], str, int]:
    """Return the names of the columns, where they are from, and the index of the first record that is a row."""
    first = [cell.strip() for cell in reading.rows[0]]
    if form.columns is not None:
        if first == list(form.columns):
            raise InputError(
                f"{name}, line 1: data.columns must be left out for a file with a header, got one that holds its names"
            )
        return list(form.columns), "settings", 0
    if _is_headerless(reading.rows, wanted):
        return _names_without_header(len(first)), "us", 0
    repeated = sorted({name for name in first if name in wanted and first.count(name) > 1})
    if repeated:
        raise InputError(f"{name}, line 1: column names must differ, got {repeated[0]!r} more than once")
    return first, "header", 1


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
        return list(AG_NEWS_COLUMNS)
    return ["label", *(f"text{index}" for index in range(1, num_columns))]


def _check_nothing_swallowed(reading: _Reading, text: str, name: str, separator: str, label: int) -> None:
    """Refuse a quotation that goes over several lines if one of them, by itself, is a row with a known label."""
    spanning = set(reading.spanning)
    known = {row[label] for index, row in enumerate(reading.rows) if index not in spanning}
    physical, width = list(_physical_lines(text)), len(reading.rows[0])

    def is_row(line: str) -> bool:
        fields = line.split(separator)
        return len(fields) == width and fields[label] in known

    for index in reading.spanning:
        start = reading.lines[index]
        end = reading.lines[index + 1] if index + 1 < len(reading.lines) else len(physical) + 1
        first, *rest = physical[start - 1 : end - 1]
        while rest and not rest[-1]:  # blank lines behind the record
            rest.pop()
        opened = next((i for i, cell in enumerate(first.split(separator)) if cell.startswith('"')), label)
        if (opened < label and is_row(first)) or any(is_row(line) for line in rest[:-1]):
            raise InputError(
                f"{name}, line {start}: a quotation must not run over lines that are rows of their own, got one that "
                f'ends on line {start + len(rest)}; close it, or write the quote twice ("")'
            )


def _unnamed(rows: list[list[str]], names: list[str], name: str) -> list[str]:
    """Return what to say of columns without a name that are not empty, as a text with separators in it leaves them."""
    unnamed = [index for index, column in enumerate(names) if not column]
    filled = sum(any(row[index].strip() for index in unnamed) for row in rows) if unnamed else 0
    return [f"{Path(name).name} has {filled:,} rows with something in columns without a name, not read"] * bool(filled)
