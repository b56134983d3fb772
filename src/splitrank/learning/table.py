"""A table as the loaders pass it on, wherever it came from, and what may be said of how a file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TableFormat:
    """How text files are written, as far as they do not say so themselves; None is found by looking at the file.

    Args:
        encoding: of files without a byte order mark, as Python names it; UTF-8 if None.
        separator: the character between fields of CSV and TSV.
        columns: names of the columns of CSV and TSV files that have no header.
    """

    encoding: str | None = None
    separator: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """Columns of equal length and where each row came from.

    Args:
        name: the file (absolute path) or the hub's name and split, for messages.
        column_names: all columns that have a name, in order.
        columns: values by column name; holds at least the wanted columns that exist.
        unit: what ``numbers`` count, ``"line"`` of a text file or ``"row"``.
        numbers: for each row the line on which it starts, or its number, from 1.
        names_from: ``"header"`` of the file, or for a file without one ``"us"`` or ``"settings"``.
        text_columns: columns of the text where nobody names any.
        notes: what of the reading a person should know, a sentence each.
    """

    name: str
    column_names: list[str]
    columns: dict[str, list[Any]]
    unit: str
    numbers: Sequence[int]
    names_from: str = "header"
    text_columns: tuple[str, ...] = ("text",)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, indices: Sequence[int]) -> str:
        """Name up to three rows and count the rest: ``"lines 3, 7 and 9 (and 2 more)"``."""
        shown = [str(self.numbers[index]) for index in indices[:3]]
        listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
        more = f" (and {len(indices) - 3} more)" if len(indices) > 3 else ""
        return f"{self.unit}{'s' if len(indices) > 1 else ''} {listed}{more}"
