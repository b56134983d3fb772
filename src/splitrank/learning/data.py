"""Texts with classes: from the Hugging Face hub or from files, checked, and cut to size by seed.

Every loader ends in the same checks, so that a run meets clean data or one sentence that says what is wrong and where.
The data set that needs no network is built in ``docstrings.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.errors import InputError
from splitrank.learning.stratified import hold_out, stratified_draw
from splitrank.learning.table_files import ENDINGS, Table, read_table
from splitrank.learning.text_rules import Split, checked_splits, columns_wanted, split_with_classes


@dataclass(frozen=True)
class TextData:
    """A training and a test split of texts with classes.

    Args:
        train_texts: one text for each training row.
        train_labels: class of each training row, 0 to len(label_names) − 1, shape (num_train,).
        test_texts: one text for each test row.
        test_labels: class of each test row, shape (num_test,).
        label_names: name of each class.
        source: one line for people: where the data came from, with versions.
        fingerprint: sha256 (hex) over texts, labels and names of both splits, in order.
    """

    train_texts: list[str]
    train_labels: NDArray[np.int64]
    test_texts: list[str]
    test_labels: NDArray[np.int64]
    label_names: list[str]
    source: str
    fingerprint: str


def text_data(train: Split, test: Split, label_names: list[str], source: str) -> TextData:
    """Put two splits together and take their fingerprint."""
    content = [train.texts, train.labels.tolist(), test.texts, test.labels.tolist(), label_names]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return TextData(train.texts, train.labels, test.texts, test.labels, label_names, source, fingerprint)


def load_hub(
    name: str,
    *,
    text: list[str] | None = None,
    label: str | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> TextData:
    """Load a data set of the Hugging Face hub, or a local folder as the ``datasets`` library reads it.

    Splits: ``train``, and for testing the first of ``test`` and ``validation`` whose labels are given (some sets hide
    them as −1); without one, a part of ``train`` is held out as in ``load_path``.

    Args:
        name: name on the hub, such as ``"fancyzhx/ag_news"``, or a folder.
        text: columns to join by one space; ``["text"]`` if None.
        label: column of the class; ``"label"`` if None.
        test_share: share of ``train`` to hold out, in (0, 1), where nothing else serves for testing; 0.2 if None.
        seed: the run's seed, for holding out.

    Raises:
        InputError: no network, no such data set, or data that breaks a rule.
    """
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # datasets, the hub's client and the network stack share no base class
        raise InputError(_hub_failure(name, error)) from error
    wanted = columns_wanted(text, label)
    if "train" not in splits:
        raise InputError(f"data.name = {name!r} must have a split called train, got {', '.join(map(str, splits))}")
    train = _hub_table(name, "train", splits["train"], wanted)
    tests = [_hub_table(name, split, splits[split], wanted) for split in ("test", "validation") if split in splits]
    test = next((table for table in tests if set(table.columns.get(wanted[-1], [])) != {None}), None)
    feature = splits["train"].features.get(wanted[-1])
    order = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    revisions = {
        match for url in splits["train"].info.download_checksums or {} for match in re.findall(r"@([0-9a-f]{40})/", url)
    }
    place = f"the folder {Path(name).absolute()}" if Path(name).exists() else f"{name} from the Hugging Face hub"
    revision = f", revision {revisions.pop()}" if len(revisions) == 1 else ""
    source = f"{place}{revision}, datasets {datasets.__version__}"
    return _checked(train, test, text, label, order, test_share, seed, source)


def load_path(
    path: str | Path,
    *,
    text: list[str] | None = None,
    label: str | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> TextData:
    """Load a folder with ``train.*`` and ``test.*``, or one file, as CSV, TSV, JSON lines or Parquet.

    A folder without ``test.*`` is tested on its ``validation.*``. When there is neither, or ``path`` is one file, a
    stratified share of the rows is held out by the stream (seed, "test-split"); every class keeps a training row.

    CSV and TSV may come in AG News's headerless form: a whole number for the class, then texts. Their columns are
    then called ``label`` and ``text``, or ``label``, ``title`` and ``description``, and all texts are joined unless
    ``text`` chooses some of them. Three such columns with the classes 1 to 4 get AG News's class names.

    Args:
        path: folder or file.
        text: columns to join by one space; ``["text"]`` if None.
        label: column of the class; ``"label"`` if None.
        test_share: share of the rows to hold out, in (0, 1), where there is no test file; 0.2 if None.
        seed: the run's seed, for holding out.

    Raises:
        InputError: missing, ambiguous or unreadable files, or data that breaks a rule.
    """
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise InputError(f"data.path must be an existing file or folder, got {place}")
    wanted = columns_wanted(text, label)
    if place.is_dir():
        train_file = _split_file(place, "train")
        test_file = _split_file(place, "test") or _split_file(place, "validation")
        if train_file is None:
            found = ", ".join(sorted(entry.name for entry in place.iterdir())[:5]) or "an empty folder"
            raise InputError(
                f"data.path must hold a file called train with one of the endings {', '.join(ENDINGS)}, "
                f"got {found} in {place}"
            )
    else:
        train_file, test_file = place, None
    train = read_table(train_file, wanted)
    test = read_table(test_file, wanted) if test_file else None
    source = f"{train_file.name} and {test_file.name} of {place}" if test_file else str(train_file)
    return _checked(train, test, text, label, None, test_share, seed, source)


def load_split(
    path: str | Path,
    split: str,
    *,
    text: list[str] | None = None,
    label: str | None = None,
    classes: list[str] | None = None,
) -> tuple[Split, list[str]]:
    """Load one split alone: what a client trains on, or a server tests on, where they hold nothing else.

    Args:
        path: a file, all of which is the split, or a folder with ``<split>.*``; forms as in :func:`load_path`.
        split: ``"train"`` or ``"test"``.
        text, label: columns, as in :func:`load_path`.
        classes: names of the classes and their order; None to take those that are found.

    Returns:
        the rows, and the names of the classes.

    Raises:
        InputError: missing or unreadable files, data that breaks a rule, or a label that is none of ``classes``.
    """
    place = Path(path).expanduser().absolute()
    file = _split_file(place, split) if place.is_dir() else place
    if file is None or not file.exists():
        raise InputError(f"data.path must be a file or a folder with {split}.*, got {place} without one")
    return split_with_classes(read_table(file, columns_wanted(text, label)), text, label, classes)


def has_split(path: str | Path, split: str) -> bool:
    """Whether a folder holds a file for a split."""
    place = Path(path).expanduser().absolute()
    return place.is_dir() and _split_file(place, split) is not None


def take_rows(data: TextData, train_rows: int | None, test_rows: int | None, seed: int) -> TextData:
    """Keep that many rows of each split, drawn by seed, in their old order.

    Draws are stratified: class shares hold up to rounding (largest remainder), and no class vanishes from training.
    The streams are (seed, "train-rows") and (seed, "test-rows").

    Args:
        data: what to draw from.
        train_rows: number of training rows, from the number of classes to all there are; None keeps all.
        test_rows: number of test rows, from 1 to all there are; None keeps all.
        seed: the run's seed.

    Raises:
        InputError: a number out of its range.
    """
    train = Split(data.train_texts, data.train_labels)
    test = Split(data.test_texts, data.test_labels)
    notes = []
    if train_rows is not None:
        available = len(train.texts)
        _check_rows("data.train_rows", train_rows, len(data.label_names), available, "training rows")
        generator = streams.generator(seed, "train-rows")
        train = train.select(stratified_draw(train.labels, train_rows, generator, at_least_one=True))
        notes.append(f"{train_rows} of {available} training rows")
    if test_rows is not None:
        available = len(test.texts)
        _check_rows("data.test_rows", test_rows, 1, available, "test rows")
        test = test.select(stratified_draw(test.labels, test_rows, streams.generator(seed, "test-rows")))
        notes.append(f"{test_rows} of {available} test rows")
    if not notes:
        return data
    return text_data(train, test, data.label_names, f"{data.source}; {' and '.join(notes)} by seed {seed}")


def _hub_failure(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if Path(name).exists():
        return (
            f"data.name = {name!r} is a folder that the datasets library cannot read: {reason}; try data.path instead"
        )
    return (
        f"data.name = {name!r} cannot be loaded from the Hugging Face hub: {reason} ({type(error).__name__}); "
        "check the name and the network, give a folder with data.path, or use the offline preset (needs no network)"
    )


def _hub_table(name: str, split: str, rows: Any, wanted: Sequence[str]) -> Table:
    """One split of a ``datasets.DatasetDict``; classes by name, hidden ones (−1) as None."""
    import datasets

    columns: dict[str, list[Any]] = {column: rows[column][:] for column in wanted if column in rows.column_names}
    for column, values in columns.items():
        feature = rows.features[column]
        if isinstance(feature, datasets.ClassLabel):
            columns[column] = [None if value is None or value < 0 else feature.names[value] for value in values]
    return Table(f"{name} ({split})", list(rows.column_names), columns, "row", range(1, len(rows) + 1))


def _split_file(folder: Path, split: str) -> Path | None:
    files = [folder / f"{split}{ending}" for ending in ENDINGS if (folder / f"{split}{ending}").exists()]
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise InputError(
            f"data.path must hold one {split} file, got {names} in {folder}; leave one or name it directly"
        )
    return files[0] if files else None


def _checked(
    train: Table,
    test: Table | None,
    text: list[str] | None,
    label: str | None,
    order: list[str] | None,
    test_share: float | None,
    seed: int,
    source: str,
) -> TextData:
    """The common end of all loaders: check the rows and hold out a test split if there is none."""
    if test is not None and test_share is not None:
        raise InputError(
            f"data.test_share must be left out where there is a test split, got {test_share} beside {test.name}"
        )
    train_split, test_split, label_names = checked_splits(train, test, text, label, order)
    if test_split is None:
        num_rows = len(train_split.texts)
        held_out = hold_out(train_split.labels, 0.2 if test_share is None else test_share, seed, train.name)
        test_split = train_split.select(held_out)
        train_split = train_split.select(np.setdiff1d(np.arange(num_rows), held_out))
        source = f"{source}; {len(held_out)} of {num_rows} rows held out for testing by seed {seed}"
    return text_data(train_split, test_split, label_names, source)


def _check_rows(key: str, rows: int, least: int, available: int, what: str) -> None:
    if rows > available:
        raise InputError(f"{key} must be at most the number of {what} there are ({available}), got {rows}")
    if rows < least:
        why = "the number of classes" if least > 1 else "one row"
        raise InputError(f"{key} must be at least {least} ({why}), got {rows}; leave it out to take all rows")
