"""The rules that texts and labels must keep, checked on whole tables, each flaw traced to its rows.

Texts of several columns are joined by one space. Labels are compared as strings, so that the 1 of one file is the 1.0
of another, and ordered by value if all are numbers, else by the alphabet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank.errors import InputError
from splitrank.learning.table_files import Table

MAX_TEXT_CHARACTERS = 1_000_000

_AG_NEWS_NAMES = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")


@dataclass(frozen=True)
class Split:
    """Texts and their classes, 0 to number of classes − 1, shape (num_rows,)."""

    texts: list[str]
    labels: NDArray[np.int64]

    def select(self, rows: NDArray[np.int64]) -> Split:
        """Keep these rows."""
        return Split([self.texts[row] for row in rows], self.labels[rows])


def columns_wanted(text: list[str] | None, label: str | None) -> list[str]:
    """Names of the text columns, then of the label column, with the defaults put in."""
    if text is not None and not text:
        raise InputError("data.text must name at least one column, got []")
    return [*(text or ["text"]), label or "label"]


def checked_splits(
    train: Table, test: Table | None, text: list[str] | None, label: str | None, order: list[str] | None = None
) -> tuple[Split, Split | None, list[str]]:
    """Turn tables into texts and classes, or say what is wrong with them.

    Args:
        train: the training rows.
        test: the test rows, None if they are to be held out later.
        text: the text columns; ``["text"]`` if None.
        label: the label column; ``"label"`` if None.
        order: the order of the class names where the source declares one.

    Returns:
        the training split, the test split and the class names.

    Raises:
        InputError: a missing column, an empty, missing, overlong or broken text, a missing label, fewer than two
            classes, or a test label that no training row has.
    """
    train_texts = texts_of(train, text)
    train_names = _labels(train, label)
    test_texts = texts_of(test, text) if test else []
    test_names = _labels(test, label) if test else []

    train_names, test_names = _as_whole_numbers(train_names, test_names)
    classes = _at_least_two(train, _ordered(set(train_names), order))
    train_split = Split(train_texts, _encoded(train, train_names, classes))
    rule, hint = "a test label must also occur in the training rows", f"; the training labels are {_listed(classes)}"
    test_split = Split(test_texts, _encoded(test, test_names, classes, rule, hint)) if test else None
    if _looks_like_ag_news(train) and set(classes) == set(_AG_NEWS_NAMES):
        return train_split, test_split, [_AG_NEWS_NAMES[name] for name in classes]
    return train_split, test_split, classes


def split_with_classes(
    table: Table, text: list[str] | None, label: str | None, classes: list[str] | None
) -> tuple[Split, list[str]]:
    """One table's texts with their classes; it need not have all the classes there are.

    Args:
        table: the rows.
        text, label: columns, as in :func:`checked_splits`.
        classes: names of the classes and their order; None to take the table's own.

    Raises:
        InputError: what :func:`checked_splits` refuses, or a label that is none of ``classes``.
    """
    texts, names = texts_of(table, text), _labels(table, label)
    (names,) = _as_whole_numbers(names)
    if _looks_like_ag_news(table) and set(names) <= set(_AG_NEWS_NAMES):
        in_order = list(_AG_NEWS_NAMES.values())
        names = [_AG_NEWS_NAMES[name] for name in names]
    else:
        in_order = _ordered(set(names), None)
    if classes is None:
        present = set(names)
        classes = _at_least_two(table, [name for name in in_order if name in present])
    rule = f"a label must be one of the federation's classes ({_listed(classes)})"
    return Split(texts, _encoded(table, names, classes, rule)), classes


def _encoded(
    table: Table, names: Sequence[str], classes: Sequence[str], rule: str = "a label must be a class", hint: str = ""
) -> NDArray[np.int64]:
    """Turn the names of a table's labels into indices of the classes.

    Args:
        rule, hint: for a label that is no class, what holds, and what stands behind the label.
    """
    index = {name: position for position, name in enumerate(classes)}
    unknown = [row for row, name in enumerate(names) if name not in index]
    if unknown:
        raise InputError(f"{table.name}, {table.rows(unknown)}: {rule}, got {names[unknown[0]]!r}{hint}")
    return np.array([index[name] for name in names], dtype=np.int64)


def _at_least_two(table: Table, classes: list[str]) -> list[str]:
    if len(classes) < 2:
        raise InputError(f"{table.name}: the labels must name at least 2 classes, got only {classes[0]!r}")
    return classes


def _looks_like_ag_news(table: Table) -> bool:
    """Return whether a table has the form of AG News as published: no header, three columns."""
    return table.headerless and len(table.column_names) == 3


def _column(table: Table, name: str, key: str) -> list[Any]:
    if name not in table.columns:
        raise InputError(
            f"{table.name}: {key} must name one of the columns {_listed(table.column_names)}"
            f"{' (ours: the file has no header)' if table.headerless else ''}, got {name!r}; "
            'name yours like data.text=["..."] data.label="..."'
        )
    return table.columns[name]


def texts_of(table: Table, text: list[str] | None) -> list[str]:
    """The text columns of a table, each stripped, joined by one space."""
    if text is None and table.headerless:
        text = table.column_names[1:]
    columns = []
    for name in text or ["text"]:
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
    if empty:
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
    """The label column of a table as strings."""
    values = _column(table, label or "label", "data.label")
    strange = [row for row, value in enumerate(values) if not isinstance(value, str | bool | int | float | None)]
    if strange:
        kind = type(values[strange[0]]).__name__
        raise InputError(f"{table.name}, {table.rows(strange)}: a label must be a string or a number, got {kind}")
    names = [
        "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
        for value in values
    ]
    broken = [row for row, name in enumerate(names) if not _is_unicode(name)]
    if broken:
        raise InputError(
            f"{table.name}, {table.rows(broken)}: a label must be valid Unicode, got half a surrogate pair"
        )
    missing = [row for row, name in enumerate(names) if not name]
    if missing:
        raise InputError(
            f"{table.name}, {table.rows(missing)}: a label must not be empty or missing; fill it or drop the row"
        )
    return names


def _as_whole_numbers(*names: list[str]) -> list[list[str]]:
    """Write "1.0" as "1", and so on, if every label of all the lists is a whole number."""
    matches = {name: _WHOLE_NUMBER.fullmatch(name) for some in names for name in some}
    whole = {name: match[1] for name, match in matches.items() if match} if all(matches.values()) else {}
    return [[whole.get(name, name) for name in some] for some in names]


def _ordered(classes: set[str], order: list[str] | None) -> list[str]:
    """Classes in the given order if there is one, else numbers by value, strings by alphabet."""
    if order is not None:
        return [name for name in order if name in classes]
    if all(_NUMBER.fullmatch(name) for name in classes):
        return sorted(classes, key=lambda name: (float(name), name))
    return sorted(classes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
