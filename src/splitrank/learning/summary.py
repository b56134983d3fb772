"""Summarise the data of a run, as plain data and as lines for people: rows, classes, lengths, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank.learning.classes import label_doubt
from splitrank.learning.data import TextData, TokenLengths
from splitrank.learning.partition import Move, Partition

_MAX_LISTED = 10
_MAX_CHARACTERS = 40


@dataclass(frozen=True)
class ClientsSummary:
    """What each client has of the training rows.

    Attributes:
        names: of the clients, where a column of the data names them.
        counts: rows of each client in each class.
        moves: rows that were given to clients with too few.
    """

    names: list[str]
    counts: list[list[int]]
    moves: list[Move]

    def lines(self, classes: Sequence[str]) -> Iterator[str]:
        """Yield one line for all, and one for each client; of many the first, and the range of the others."""
        sizes = [sum(counts) for counts in self.counts]
        yield f"Clients: {len(sizes):,} with {_range(sizes)} training rows."
        for client, counts in enumerate(self.counts[:_MAX_LISTED]):
            held = [label for label, count in enumerate(counts) if count]
            name = f" ({_shown(self.names[client])})" if self.names else ""
            listed = _listed([classes[label] for label in held], [counts[label] for label in held])
            yield f"  client {client}{name}: {sizes[client]:,} rows, {len(held)} of {len(classes)} classes: {listed}"
        if rest := sizes[_MAX_LISTED:]:
            yield f"  and {len(rest):,} more with {_range(rest)} rows"
        if self.moves:
            moved, given_to = sum(move.rows for move in self.moves), len({move.to_client for move in self.moves})
            yield f"  {moved:,} rows were given to {given_to:,} clients that had too few."


@dataclass(frozen=True)
class DataSummary:
    """A data set in numbers.

    Attributes:
        train_rows, test_rows: numbers of texts.
        train_from, test_from: what each split was taken from.
        classes: their names.
        train_counts, test_counts: rows of each class.
        largest_class: the class with the most test rows.
        largest_class_share: its share of the test rows: the accuracy of always naming it.
        lengths: what the tokenizer tells of the texts; None where they were not tokenised.
        notes: how files were read, as far as it is not plain.
        warnings: what may not be as meant.
        clients: what each client has; None where the training rows are with the clients alone.
    """

    train_rows: int
    test_rows: int
    train_from: str
    test_from: str
    classes: list[str]
    train_counts: list[int]
    test_counts: list[int]
    largest_class: str
    largest_class_share: float
    lengths: TokenLengths | None
    notes: list[str]
    warnings: list[str]
    clients: ClientsSummary | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def reading_lines(self) -> Iterator[str]:
        """Yield what is known once the texts are read: one line, and a line for each warning."""
        splits = (("training", self.train_rows, self.train_from), ("test", self.test_rows, self.test_from))
        parts = [f"{rows:,} {split} rows{f' ({origin})' if origin else ''}" for split, rows, origin in splits if rows]
        counts = self.train_counts if self.train_rows else self.test_counts
        notes = "".join(f" {note}." for note in self.notes)
        yield f"Texts: {', '.join(parts)}; {len(self.classes)} classes: {_listed(self.classes, counts)}.{notes}"
        for warning in self.warnings:
            yield f"Warning: {warning}."

    def worth_line(self) -> str:
        """Return what an accuracy must be measured against."""
        share = f"{100 * self.largest_class_share:.1f} %"
        return f"Always naming the largest class, {_shown(self.largest_class)}, is right for {share} of the test rows."

    def client_lines(self) -> Iterator[str]:
        """Yield what each client has, where it is known."""
        if self.clients is not None:
            yield from self.clients.lines(self.classes)

    def length_lines(self) -> Iterator[str]:
        """Yield what is known once the texts are tokenised: one line, and perhaps a warning."""
        if self.lengths is None:
            return
        longest, rows = self.lengths.max_length, {"training": self.train_rows, "test": self.test_rows}
        longer = {"training": self.lengths.train_longer, "test": self.lengths.test_longer}
        counted = {split: number for split, number in longer.items() if number is not None and rows[split]}
        if any(counted.values()):
            shares = [f"{100 * number / rows[split]:.1f} % of the {split} texts" for split, number in counted.items()]
            shown = " and ".join(shares)
            yield f"{shown} have more tokens than model.max_length = {longest}, and are cut there."
        else:
            yield f"No text has more tokens than model.max_length = {longest}."
        if self.lengths.test_seen:
            yield (
                f"Warning: {self.lengths.test_seen:,} of {self.test_rows:,} test texts are equal to a training text "
                f"once cut to {longest} tokens."
            )


def summarise(data: TextData, dealt: Partition | None = None) -> DataSummary:
    """Sum up a data set, and who holds which of its training rows."""
    num_classes, origin = len(data.label_names), data.origin
    train_counts, test_counts = (_counts(labels, num_classes) for labels in (data.train_labels, data.test_labels))
    largest = int(np.argmax(test_counts))
    return DataSummary(
        train_rows=len(data.train_texts),
        test_rows=len(data.test_texts),
        train_from=origin.train,
        test_from=origin.test,
        classes=data.label_names,
        train_counts=train_counts,
        test_counts=test_counts,
        largest_class=data.label_names[largest],
        largest_class_share=test_counts[largest] / max(1, len(data.test_texts)),
        lengths=data.lengths,
        notes=list(origin.notes),
        warnings=list(_warnings(data, train_counts if data.train_texts else test_counts)),
        clients=None if dealt is None else ClientsSummary(list(dealt.names), dealt.counts.tolist(), list(dealt.moves)),
    )


def _counts(labels: NDArray[np.int64], num_classes: int) -> list[int]:
    return [int(count) for count in np.bincount(labels, minlength=num_classes)]


def _warnings(data: TextData, counts: Sequence[int]) -> Iterator[str]:
    if doubt := label_doubt(data.label_names, sum(counts)):
        yield doubt
    for name, count in zip(data.label_names, counts, strict=True):
        if name.lower() in ("nan", "<na>"):
            yield f"{name!r} is a class with {count:,} rows, but looks like a missing label"
        elif data.origin.label and name.strip().lower() == data.origin.label.lower():
            yield f"{name!r} is a class with {count:,} rows, but looks like a header in the midst of the rows"
    if data.origin.unused:
        listed = ", ".join(data.origin.unused[:_MAX_LISTED])
        more = len(data.origin.unused) - _MAX_LISTED
        yield f"not used: {listed}{f' and {more} more' if more > 0 else ''}, beside {data.origin.train}"


def _listed(names: Sequence[str], counts: Sequence[int]) -> str:
    """Return the classes with their rows; of many the largest, and how many rows the others have."""
    order = range(len(names)) if len(names) <= _MAX_LISTED else np.argsort(-np.array(counts), kind="stable")
    shown = [f"{_shown(names[index])} {counts[index]:,}" for index in order[:_MAX_LISTED]]
    if len(names) <= _MAX_LISTED:
        return ", ".join(shown)
    rest = [counts[index] for index in order[_MAX_LISTED:]]
    return f"{', '.join(shown)} and {len(rest):,} more of {min(rest):,} to {max(rest):,}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _shown(name: str) -> str:
    short = name if len(name) <= _MAX_CHARACTERS else f"{name[: _MAX_CHARACTERS - 3]}..."
    return short if short.isprintable() else repr(short)
