"""Gather the picture of who holds what: each client's training texts, stacked by class.

Of many classes the largest are shown and the others as one; of many clients the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from splitrank.studies.report_charts import NUM_COLOURS, Chart, Line, Quantity, Series, plain, shortened
from splitrank.studies.run_reader import DataDescription

Counts = NDArray[np.float64]

TEXTS = Quantity("training texts", lambda value: f"{plain(value)} {'text' if value == 1 else 'texts'}", is_whole=True)

_MAX_BARS = 40
_MAX_NAME = 40


def share_charts(lines: Sequence[Line]) -> list[Chart]:
    """Return the picture in a list; an empty one where a run did not record who holds what, or in other classes.

    Runs that all hold the same share one bar for each client; else every line has its own. A line of several runs shows
    their means.
    """
    told = [[run.data for run in line.runs] for line in lines]
    everybody = [data for of_line in told for data in of_line]
    classes = everybody[0].labels
    if classes is None or any(data.labels != classes or not _is_known(data) for data in everybody):
        return []
    # Runs that share a line have the same number of clients.
    held = [np.array([data.client_counts for data in of_line], dtype=np.float64).mean(axis=0) for of_line in told]
    bars: list[tuple[str, int | None, Counts]]
    bars = [(f"{line.label}, ", index, counts) for index, (line, counts) in enumerate(zip(lines, held, strict=True))]
    if all(np.array_equal(counts, held[0]) for counts in held):
        bars = [("", None, held[0])]
    most = max(1, _MAX_BARS // len(bars))
    named, others = _largest(sum(counts.sum(axis=0) for counts in held))
    groups_of_classes = [(shortened(classes[label], _MAX_NAME), [label]) for label in named]
    if others:
        groups_of_classes.append((f"{len(others)} other classes", others))
    series = []
    for name, index, counts in bars:
        for place, (key, labels) in enumerate(groups_of_classes):
            numbers = _numbers(counts[:most, labels].sum(axis=1), everybody[0].client_names)
            colour = place if index is None or len(lines) == 1 else index % NUM_COLOURS
            series.append(Series(f"{name}{key}", index, numbers, False, colour, filling=place, key=key))
    return [Chart("shares", "Who holds what", _note(held, most, len(bars), told), TEXTS, series, True, "client")]


def _is_known(data: DataDescription) -> bool:
    return {len(of_client) for of_client in data.client_counts or ()} == {len(data.labels or ())}


def _largest(totals: Counts) -> tuple[list[int], list[int]]:
    """Return the classes to show by name, in their order, and the others: none, or at least two."""
    if len(totals) <= NUM_COLOURS:
        return list(range(len(totals))), []
    order = np.argsort(-totals, kind="stable")
    return sorted(map(int, order[: NUM_COLOURS - 1])), sorted(map(int, order[NUM_COLOURS - 1 :]))


def _numbers(counts: Counts, names: Sequence[str]) -> pd.DataFrame:
    texts = [TEXTS.show(count) for count in counts]
    if names:
        texts = [f"{shortened(name, _MAX_NAME)}: {text}" for name, text in zip(names, texts, strict=False)]
    return pd.DataFrame({"mean": counts, "min": counts, "max": counts, "text": texts}, index=range(len(counts)))


def _note(held: Sequence[Counts], most: int, groups: int, told: Sequence[Sequence[DataDescription]]) -> str:
    num_clients = max(len(counts) for counts in held)
    note = "Training texts of each client by class."
    if num_clients > most:
        rest = np.concatenate([counts[most:].sum(axis=1) for counts in held])
        low, high = plain(rest.min()), plain(rest.max())
        note += f" The first {most} of {num_clients:,} clients; the others have {low} to {high} texts."
    if groups > 1:
        note += " A bar for each run stands beside the others."
    if any(len(of_line) > 1 for of_line in told):
        note += " Of several runs the mean."
    return note
