"""The classes of a federation: decided once, from the training rows or the server's test rows, and then looked up.

Labels are compared as strings, except that whole numbers are the same however they are written: the 1 of one file is
the 1.0 of another, whatever else the file holds. Classes are ordered by value if all are numbers, else by the alphabet.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from splitrank.errors import InputError
from splitrank.learning.delimited import AG_NEWS_COLUMNS
from splitrank.learning.table import Table

_AG_NEWS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
_MANY_CLASSES = 10
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")


def decide_classes(table: Table, labels: Sequence[str], order: Sequence[str] | None = None) -> list[str]:
    """Return the names of the classes, in the order of their indices.

    A file without a header whose columns are AG News's gets AG News's names if its classes are 1 to 4, all of them.

    Args:
        table: the rows that decide.
        labels: label of each of its rows.
        order: the order of the names where the source declares one.

    Raises:
        InputError: fewer than two classes.
    """
    names = set(labels)
    plain = {name: plain_label(name) for name in names}
    if all(map(_WHOLE_NUMBER.fullmatch, names)) or len(set(plain.values())) < len(names):
        names = set(plain.values())
    if len(names) < 2:
        raise InputError(f"{table.name}: the labels must name at least 2 classes, got only {names.pop()!r}")
    has_ag_news_form = table.names_from != "header" and tuple(table.column_names) == AG_NEWS_COLUMNS
    if has_ag_news_form and names == set(_AG_NEWS):
        return list(_AG_NEWS.values())
    if order is not None:
        return [name for name in order if name in names]
    if is_all_numbers(names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def encode(
    table: Table,
    labels: Sequence[str],
    classes: Sequence[str],
    rule: str = "a label must be a class",
    hint: str = "",
) -> NDArray[np.int64]:
    """Return the index of the class of each row, int64, shape (num_rows,).

    Args:
        table: the rows, for messages.
        labels: label of each row; AG News's may be its numbers, 1 to 4.
        classes: what :func:`decide_classes` returned, for these rows or others.
        rule, hint: for a label that is no class, what holds, and what stands behind the label.

    Raises:
        InputError: a label that is no class.
    """
    index = {plain_label(name): position for position, name in enumerate(classes)}
    if set(classes) == set(_AG_NEWS.values()):
        index |= {number: index[name] for number, name in _AG_NEWS.items()}
    found = {label: index.get(plain_label(label)) for label in set(labels)}
    unknown = [row for row, label in enumerate(labels) if found[label] is None]
    if unknown:
        raise InputError(f"{table.name}, {table.rows(unknown)}: {rule}, got {labels[unknown[0]]!r}{hint}")
    return np.array([found[label] for label in labels], dtype=np.int64)


def label_doubt(classes: Sequence[str], num_rows: int) -> str:
    """Return why labels may be no classes, as a part of a sentence; "" where nothing speaks against it.

    Args:
        classes: their names.
        num_rows: rows that have them.
    """
    if len(classes) <= _MANY_CLASSES:
        return ""
    counted = f"{len(classes):,} different ones in {num_rows:,} rows, such as {classes[0]!r}"
    if is_all_numbers(classes) and not all(map(_WHOLE_NUMBER.fullmatch, classes)):
        return f"the labels look like numbers to predict, not like classes ({counted}); turn them into a few classes"
    if 2 * len(classes) > num_rows:
        return f"the labels look like no classes ({counted}); data.label may name another column"
    return ""


def is_all_numbers(names: Collection[str]) -> bool:
    """Return whether all names of classes are numbers."""
    return all(map(_NUMBER.fullmatch, names))


def plain_label(name: str) -> str:
    """Return "1" for "1.0" and "1.", and any other label as it is."""
    match = _WHOLE_NUMBER.fullmatch(name)
    return match[1] if match else name
