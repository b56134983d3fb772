"""Texts with classes: from the Hugging Face hub or from files, checked, and cut to size by seed.

Every loader ends in the same checks, so that a run meets clean data or one sentence that says what is wrong and where.
The data set that needs no network is built in ``docstrings.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.errors import InputError
from splitrank.learning.classes import label_doubt
from splitrank.learning.split_files import VALIDATION, SplitFiles
from splitrank.learning.stratified import hold_out, stratified_draw
from splitrank.learning.table import Table, TableFormat
from splitrank.learning.table_files import read_table
from splitrank.learning.text_rules import (
    Split,
    check_columns,
    checked_splits,
    columns_wanted,
    first_with_labels,
    split_with_classes,
)


@dataclass(frozen=True)
class Origin:
    """Where the rows of a data set came from, for people; empty where the data set's own name says it.

    Attributes:
        train, test: what each split was taken from.
        label: the label column; "" where there is none.
        notes: what of the reading one should know, a sentence each.
        passed_over: splits without labels, which the notes name.
        unused: tables beside those that were read.
    """

    train: str = ""
    test: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenLengths:
    """The lengths and cuts of a data set's texts, by the tokenizer.

    Attributes:
        max_length: tokens to which every text is cut.
        train_longer, test_longer: texts that were longer; None for training texts that are elsewhere.
        test_seen: test texts that, once cut, are equal to a training text.
    """

    max_length: int
    train_longer: int | None
    test_longer: int
    test_seen: int


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
        origin: where each split came from.
        lengths: None until the texts were tokenised.
        train_holders: whose each training row is, where a column tells.
    """

    train_texts: list[str]
    train_labels: NDArray[np.int64]
    test_texts: list[str]
    test_labels: NDArray[np.int64]
    label_names: list[str]
    source: str
    fingerprint: str
    origin: Origin = Origin()
    lengths: TokenLengths | None = None
    train_holders: tuple[str, ...] | None = None


def text_data(train: Split, test: Split, label_names: list[str], source: str, origin: Origin | None = None) -> TextData:
    """Put two splits together and take their fingerprint."""
    content = [train.texts, train.labels.tolist(), test.texts, test.labels.tolist(), label_names]
    if train.holders is not None:
        content.append(list(train.holders))
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return TextData(
        train.texts, train.labels, test.texts, test.labels, label_names, source, fingerprint, origin or Origin(),
        train_holders=train.holders,
    )  # fmt: skip


def load_hub(
    name: str,
    *,
    config: str | None = None,
    text: list[str] | None = None,
    label: str | None = None,
    holder: str | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> TextData:
    """Load a data set of the Hugging Face hub, or a local folder as the ``datasets`` library reads it.

    Splits: ``train``, and for testing the first of ``test`` and ``validation`` whose labels are given (some sets hide
    them as −1); without either, a part of ``train`` is held out as in ``load_path``.

    Args:
        name: name on the hub, such as ``"fancyzhx/ag_news"``, or a folder.
        config: which of the data set's configurations, such as ``"sst2"``; None where it has one.
        text: columns to join by one space; ``["text"]`` if None.
        label: column of the class; ``"label"`` if None.
        holder: column of the training rows that names their client; None without one.
        test_share: share of ``train`` to hold out, in (0, 1), where nothing else serves for testing; 0.2 if None.
        seed: the run's seed, for holding out.

    Raises:
        InputError: no network, no such data set or configuration, or data that breaks a rule.
    """
    import datasets

    try:
        splits = datasets.load_dataset(name, *([config] if config else []))
    except Exception as error:  # datasets, the hub's client and the network stack share no base class
        raise InputError(_hub_failure(name, config, error)) from error
    wanted = columns_wanted(text, label)
    if "train" not in splits:
        raise InputError(f"data.name = {name!r} must have a split called train, got {', '.join(map(str, splits))}")
    train = _hub_table(name, "train", splits["train"], columns_wanted(text, label, holder))
    tests = (_hub_table(name, split, splits[split], wanted) for split in ("test", *VALIDATION) if split in splits)
    feature = splits["train"].features.get(wanted[-1])
    order = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    revisions = {
        match for url in splits["train"].info.download_checksums or {} for match in re.findall(r"@([0-9a-f]{40})/", url)
    }
    place = f"the folder {Path(name).absolute()}" if Path(name).exists() else f"{name} from the Hugging Face hub"
    revision = f", revision {revisions.pop()}" if len(revisions) == 1 else ""
    source = f"{place}{f' ({config})' if config else ''}{revision}, datasets {datasets.__version__}"
    return _checked(train, tests, (text, label, holder), order, test_share, seed, lambda _: source)


def load_path(
    path: str | Path,
    *,
    text: list[str] | None = None,
    label: str | None = None,
    holder: str | None = None,
    form: TableFormat | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> TextData:
    """Load a folder with ``train.*`` and ``test.*``, or one file, as CSV, TSV, JSON, JSON lines or Parquet.

    A folder without ``test.*``, or with one whose labels are hidden, is tested on its ``validation.*``, ``valid.*``,
    ``val.*`` or ``dev.*``. When there is none of these, or ``path`` is one file, a stratified share of the rows is
    held out by the stream (seed, "test-split"); every class keeps a training row.

    CSV and TSV may come in AG News's headerless form: a whole number for the class, then texts. Their columns are
    then called ``label`` and ``text``, or ``label``, ``title`` and ``description``, and all texts are joined unless
    ``text`` chooses some of them. Three such columns with the classes 1 to 4 get AG News's class names.

    Args:
        path: folder or file.
        text: columns to join by one space; ``["text"]`` if None.
        label: column of the class; ``"label"`` if None.
        holder: column of the training rows that names their client; None without one.
        form: how the files are written, as far as they do not say so themselves.
        test_share: share of the rows to hold out, in (0, 1), where there is no test file; 0.2 if None.
        seed: the run's seed, for holding out.

    Raises:
        InputError: missing, ambiguous or unreadable files, or data that breaks a rule.
    """
    place = _existing(path)
    wanted = columns_wanted(text, label)
    files = SplitFiles.of(place) if place.is_dir() else None
    train_file = files.training_file() if files else place
    train = read_table(train_file, columns_wanted(text, label, holder), form)
    tests = (read_table(file, wanted, form) for file in (files.to_test_on() if files else ()))

    def source(test: Table | None) -> str:
        return f"{train_file.name} and {Path(test.name).name} of {place}" if test else str(train_file)

    data = _checked(train, tests, (text, label, holder), None, test_share, seed, source)
    if files is None:
        return data
    told = {data.origin.train, data.origin.test, *data.origin.passed_over}
    return replace(data, origin=replace(data.origin, unused=tuple(name for name in files.tables if name not in told)))


def load_split(
    path: str | Path,
    split: str,
    *,
    text: list[str] | None = None,
    label: str | None = None,
    form: TableFormat | None = None,
    classes: list[str] | None = None,
) -> tuple[Split, list[str], Origin]:
    """Load one split alone: what a client trains on, or a server tests on, where they hold nothing else.

    Args:
        path: a file, all of which is the split, or a folder with the split's file; forms as in :func:`load_path`.
        split: ``"train"`` or ``"test"``; the validation file serves for testing as in :func:`load_path`.
        text, label, form: as in :func:`load_path`.
        classes: names of the classes and their order; None to take those that are found.

    Returns:
        the rows, the names of the classes, and where the rows came from (as ``train`` and ``test`` alike).

    Raises:
        InputError: missing or unreadable files, data that breaks a rule, or a label that is none of ``classes``.
    """
    place = Path(path).expanduser().absolute()
    wanted = columns_wanted(text, label)
    table: Table | None
    if split == "test" and place.is_dir():
        tables = (read_table(file, wanted, form) for file in SplitFiles.of(place).to_test_on())
        table, hidden = first_with_labels(tables, label)
        if table is None and hidden:
            raise InputError(_all_hidden(hidden, "remove it"))
    else:
        file = SplitFiles.of(place).only(split) if place.is_dir() else place
        table = read_table(file, wanted, form) if file is not None and file.exists() else None
    if table is None:
        raise InputError(f"data.path must be a file or a folder with {split}.*, got {place} without one")
    rows, classes = split_with_classes(table, text, label, classes)
    return rows, classes, Origin(_short(table.name), _short(table.name), label or "label", table.notes)


def has_test_split(path: str | Path) -> bool:
    """Return whether a folder holds a file to test on."""
    place = Path(path).expanduser().absolute()
    return place.is_dir() and any(SplitFiles.of(place).to_test_on())


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
    train = Split(data.train_texts, data.train_labels, data.train_holders)
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
    return text_data(train, test, data.label_names, f"{data.source}; {' and '.join(notes)} by seed {seed}", data.origin)


def _existing(path: str | Path) -> Path:
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise InputError(f"data.path must be an existing file or folder, got {place}")
    return place


def _hub_failure(name: str, config: str | None, error: Exception) -> str:
    if configs := _hub_configs(name) if isinstance(error, ValueError) else []:
        listed = ", ".join(map(repr, configs))
        if config is None and len(configs) > 1:
            return f"data.config must name one of the configurations of {name!r}, {listed}, got none"
        if config is not None and config not in configs:
            return f"data.config must be one of the configurations of {name!r}, {listed}, got {config!r}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if Path(name).exists():
        return (
            f"data.name = {name!r} is a folder that the datasets library cannot read: {reason}; try data.path instead"
        )
    return (
        f"data.name = {name!r} cannot be loaded from the Hugging Face hub: {reason} ({type(error).__name__}); "
        "check the name and the network, give a folder with data.path, or use the offline preset (needs no network)"
    )


def _hub_configs(name: str) -> list[str]:
    import datasets

    try:
        return sorted(datasets.get_dataset_config_names(name))
    except Exception:  # whatever kept the data set from loading
        return []


def _hub_table(name: str, split: str, rows: Any, wanted: Sequence[str]) -> Table:
    """Return one split of a ``datasets.DatasetDict``; classes by name, hidden ones (−1) as None."""
    import datasets

    columns: dict[str, list[Any]] = {column: rows[column][:] for column in wanted if column in rows.column_names}
    for column, values in columns.items():
        feature = rows.features[column]
        if isinstance(feature, datasets.ClassLabel):
            columns[column] = [None if value is None or value < 0 else feature.names[value] for value in values]
    return Table(f"{name} ({split})", list(rows.column_names), columns, "row", range(1, len(rows) + 1))


def _checked(
    train: Table,
    tests: Iterator[Table],
    columns: tuple[list[str] | None, str | None, str | None],
    order: list[str] | None,
    test_share: float | None,
    seed: int,
    source_with: Callable[[Table | None], str],
) -> TextData:
    """Find what to test on, check the rows, hold out a test split if there is none."""
    text, label, holder = columns
    check_columns(train, text, label, holder)
    test, hidden = first_with_labels(tests, label, train)
    if test is not None and test_share is not None:
        raise InputError(
            f"data.test_share must be left out where there is a test split, got {test_share} beside {test.name}"
        )
    if test is None and hidden and test_share is None:
        raise InputError(
            _all_hidden(hidden, "remove it, or set data.test_share to hold out a share of the training rows")
        )
    train_split, test_split, label_names = checked_splits(train, test, text, label, order, holder)
    source, train_name = source_with(test), _short(train.name)
    notes = [*train.notes, *(test.notes if test else ()), *(f"{_short(name)} has no labels" for name in hidden)]
    passed_over = tuple(map(_short, hidden))
    origin = Origin(train_name, _short(test.name) if test else "", label or "label", tuple(notes), passed_over)
    if test_split is None:
        num_rows = len(train_split.texts)
        try:
            held_out = hold_out(train_split.labels, 0.2 if test_share is None else test_share, seed, train.name)
        except InputError as error:
            doubt = label_doubt(label_names, num_rows)
            raise InputError(f"{error}; {doubt}" if doubt else str(error)) from None
        test_split = train_split.select(held_out)
        train_split = train_split.select(np.setdiff1d(np.arange(num_rows), held_out))
        source = f"{source}; {len(held_out)} of {num_rows} rows held out for testing by seed {seed}"
        origin = replace(origin, test=f"held out of {train_name} by seed {seed}")
    return text_data(train_split, test_split, label_names, source, origin)


def _short(name: str) -> str:
    """Return a file's name without its folder; the hub's splits keep theirs."""
    return name.rpartition("/")[2] if name.startswith("/") else name


def _all_hidden(hidden: Sequence[str], remedy: str) -> str:
    return f"{' and '.join(hidden)}: rows to test on must have labels, got none or only -1; {remedy}"


def _check_rows(key: str, rows: int, least: int, available: int, what: str) -> None:
    if rows > available:
        raise InputError(f"{key} must be at most the number of {what} there are ({available}), got {rows}")
    if rows < least:
        why = "the number of classes" if least > 1 else "one row"
        raise InputError(f"{key} must be at least {least} ({why}), got {rows}; leave it out to take all rows")
