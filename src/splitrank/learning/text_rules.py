"""The rules that texts and labels must keep, checked on whole tables, each flaw traced to its rows.

Texts of several columns are joined by one space. ``classes.py`` decides which classes there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank.errors import InputError
from splitrank.learning.classes import decide_classes, encode, label_doubt, plain_label
from splitrank.learning.table import Table

MAX_TEXT_CHARACTERS = 1_000_000

_NAMED_BY = {"header": "", "us": " (ours: the file has no header)", "settings": " (from data.columns)"}


@dataclass(frozen=True)
class Split:
    """Texts and their classes, 0 to number of classes − 1, shape (num_rows,); ``holders`` names whose each row is."""

    texts: list[str]
    labels: NDArray[np.int64]
    holders: tuple[str, ...] | None = None

    def select(self, rows: NDArray[np.int64]) -> Split:
        """Keep these rows."""
        holders = None if self.holders is None else tuple(self.holders[row] for row in rows)
        return Split([self.texts[row] for row in rows], self.labels[rows], holders)


def columns_wanted(text: list[str] | None, label: str | None, holder: str | None = None) -> list[str]:
    """Names of the text columns, of the column that names a row's client if there is one, then of the label column."""
    if text is not None and not text:
        raise InputError("data.text must name at least one column, got []")
    return [*(text or ["text"]), *([holder] if holder else []), label or "label"]


def checked_splits(
    train: Table,
    test: Table | None,
    text: list[str] | None,
    label: str | None,
    order: list[str] | None = None,
    holder: str | None = None,
) -> tuple[Split, Split | None, list[str]]:
    """Turn tables into texts and classes, or say what is wrong with them.

    Args:
        train: the training rows.
        test: the test rows, None if they will be held out later.
        text: the text columns; ``["text"]`` if None.
        label: the label column; ``"label"`` if None.
        order: the order of the class names where the source declares one.
        holder: the column that names a training row's client, None without one.

    Returns:
        the training split, the test split and the class names.

    Raises:
        InputError: a missing column, an empty, missing, overlong or broken text, a missing label, fewer than two
            classes, or a test label that no training row has.
    """
    train_texts, train_names = texts_of(train, text), _labels(train, label)
    classes = decide_classes(train, train_names, order)
    holders = None if holder is None else tuple(_holders(train, holder))
    train_split = Split(train_texts, encode(train, train_names, classes), holders)
    if test is None:
        return train_split, None, classes
    rule, hint = "a test label must also occur in the training rows", f"; the training labels are {_listed(classes)}"
    if doubt := label_doubt(classes, len(train_names)):
        hint += f"; {doubt}"
    test_split = Split(texts_of(test, text), encode(test, _labels(test, label), classes, rule, hint))
    return train_split, test_split, classes


def split_with_classes(
    table: Table, text: list[str] | None, label: str | None, classes: list[str] | None
) -> tuple[Split, list[str]]:
    """Return one table's texts with their classes; it need not have all the classes there are.

    Args:
        table: the rows.
        text, label: columns, as in :func:`checked_splits`.
        classes: names of the classes and their order; None to take the table's own.

    Raises:
        InputError: what :func:`checked_splits` refuses, or a label that is none of ``classes``.
    """
    texts, names = texts_of(table, text), _labels(table, label)
    if classes is None:
        classes = decide_classes(table, names)
    rule = f"a label must be one of the federation's classes ({_listed(classes)})"
    return Split(texts, encode(table, names, classes, rule)), classes


def first_with_labels(
    tables: Iterable[Table], label: str | None, train: Table | None = None
) -> tuple[Table | None, list[str]]:
    """Return the first table whose rows are labelled, and the names of those before it, whose labels are hidden.

    Labels are hidden where the column is missing, or nothing in it but missing values and −1. Where other labels stand
    beside it −1 is a class, and where the training rows have it.

    Args:
        tables: what may be tested on, the best first; read no further than needed.
        label: the label column; ``"label"`` if None.
        train: the training rows.
    """
    column, hidden = label or "label", list[str]()

    def labels_of(table: Table) -> set[str]:
        values = set(map(str, (value for value in table.columns.get(column, []) if not _is_missing(value))))
        return {plain_label(value.strip()) for value in values} - {""}

    allowed = labels_of(train) if train else set()
    for table in tables:
        if labels_of(table) - ({"-1"} - allowed):
            return table, hidden
        hidden.append(table.name)
    return None, hidden


def check_columns(table: Table, text: list[str] | None, label: str | None, holder: str | None = None) -> None:
    """Check that a table has the columns of texts and labels, and the one that names a row's client.

    Raises:
        InputError: one is missing.
    """
    for name in text or table.text_columns:
        _column(table, name, "data.text")
    _column(table, label or "label", "data.label")
    if holder is not None:
        _column(table, holder, _HOLDER_KEY, f'{_HOLDER_KEY} = {{column = "..."}}')


_HOLDER_KEY = "federation.partition"


def _column(table: Table, name: str, key: str, example: str = 'data.text=["..."] data.label="..."') -> list[Any]:
    if name not in table.columns:
        raise InputError(
            f"{table.name}: {key} must name one of the columns {_listed(table.column_names)}"
            f"{_NAMED_BY[table.names_from]}, got {name!r}{''.join(f' ({note})' for note in table.notes)}; "
            f"name yours like {example}"
        )
    return table.columns[name]


def texts_of(table: Table, text: list[str] | None, *, may_be_empty: bool = False) -> list[str]:
    """Return the text columns of a table, each stripped, joined by one space; ``""`` where a row has none and may."""
    columns = []
    for name in text or table.text_columns:
        values = _column(table, name, "data.text")
        strange = [row for row, value in enumerate(values) if not isinstance(value, str | None)]
        if strange:
            kind = type(values[strange[0]]).__name__
            raise InputError(
                f"{table.name}, {table.rows(strange)}: column {name!r} must hold text, got {kind}; "
                "choose other columns with data.text"
            )
        columns.append(values)
    texts = [
        " ".join(piece for value in row if value and (piece := value.strip())) for row in zip(*columns, strict=True)
    ]
    empty = [row for row, joined in enumerate(texts) if not joined]
    if empty and not may_be_empty:
        raise InputError(
            f"{table.name}, {table.rows(empty)}: a text must not be empty or missing; fill it or drop the row"
        )
    long = [row for row, joined in enumerate(texts) if len(joined) > MAX_TEXT_CHARACTERS]
    if long:
        raise InputError(
            f"{table.name}, {table.rows(long)}: a text must have at most {MAX_TEXT_CHARACTERS:,} characters, "
            f"got {len(texts[long[0]]):,}; split it or leave it out"
        )
    broken = [row for row, joined in enumerate(texts) if not _is_unicode(joined)]
    if broken:
        raise InputError(
            f"{table.name}, {table.rows(broken)}: a text must be valid Unicode, got half of a surrogate pair; "
            "repair the \\u escape"
        )
    return texts


def checked_texts(texts: list[str]) -> list[str]:
    """Texts given one by one, held to the rules of a table's: stripped, not empty, not endless, valid Unicode."""
    return texts_of(Table("TEXT", ["text"], {"text": texts}, "argument", range(1, len(texts) + 1)), None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(table: Table, label: str | None) -> list[str]:
    """Return the label column of a table as strings."""
    return _names(table, _column(table, label or "label", "data.label"), "a label")


def _holders(table: Table, holder: str) -> list[str]:
    """Return the column that names a row's client as strings; 1 is 1.0, as for labels."""
    names = _names(table, _column(table, holder, _HOLDER_KEY), f"a value of the column {holder!r}")
    return [plain_label(name) for name in names]


def _names(table: Table, values: list[Any], what: str) -> list[str]:
    strange = [row for row, value in enumerate(values) if not isinstance(value, str | bool | int | float | None)]
    if strange:
        kind = type(values[strange[0]]).__name__
        raise InputError(f"{table.name}, {table.rows(strange)}: {what} must be a string or a number, got {kind}")
    names = ["" if _is_missing(value) else str(value).strip() for value in values]
    broken = [row for row, name in enumerate(names) if not _is_unicode(name)]
    if broken:
        raise InputError(f"{table.name}, {table.rows(broken)}: {what} must be valid Unicode, got half a surrogate pair")
    missing = [row for row, name in enumerate(names) if not name]
    if missing:
        raise InputError(
            f"{table.name}, {table.rows(missing)}: {what} must not be empty or missing; fill it or drop the row"
        )
    return names


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
