"""What a chart of a report holds: a line's numbers over rounds, read from the records as they stand.

A line is a run, or the mean of runs that differ in nothing but the seed. A reading takes a run to the numbers that one
quantity has in each of its rounds: one number, one for each client, or none. Nothing is rounded here but the texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from splitrank.studies.recorded import RecordedRun
from splitrank.studies.totals import Reading, has_rank, numbers, of_clients

NUM_COLOURS = 8
SYMBOLS = ("●", "■", "◆", "▲", "✚", "✖", "★", "▼")
"""As text; the charts draw the same shapes in the same order."""


@dataclass(frozen=True)
class Line:
    """What is drawn in one colour.

    Attributes:
        label: its name in legend, charts and tables; as the user wrote it, not escaped.
        runs: one run, or several of which the mean and the range are drawn.
    """

    label: str
    runs: tuple[RecordedRun, ...]


@dataclass(frozen=True)
class Quantity:
    """How numbers of one kind are shown.

    Attributes:
        axis: title of the axis, with the unit.
        tick_format: d3's format of the axis.
        is_whole: whether the axis counts in whole numbers.
        show: a number as text, with the unit.
    """

    axis: str
    tick_format: str
    show: Callable[[float], str]
    is_whole: bool = False


@dataclass(frozen=True)
class Series:
    """Numbers over rounds. All lists have one entry for each round.

    Attributes:
        line: index of the line with which it is shown and hidden; None for what belongs to all.
        name: whose numbers; not escaped.
        rounds: the rounds.
        values: the recorded numbers, or their mean; None where a round has none.
        low, high: the range of what ``values`` averages; None where nothing is averaged.
        texts: the values for people.
        colour: index of the colour; None for a neutral one.
        symbol: index of the marker's shape.
        dash: how the line is drawn.
        part: index of the filling of a stacked bar.
    """

    line: int | None
    name: str
    rounds: list[int]
    values: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None
    texts: list[str]
    colour: int | None = None
    symbol: int = 0
    dash: str = "solid"
    part: int = 0


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: names it in the page.
        title: its heading.
        note: how to read it; plain text.
        quantity: of the vertical axis.
        series: what is drawn.
        budgets: the limits drawn with it.
        clients: clients told apart by the shape of the markers, in the order of the shapes.
        parts: filling → what it stands for, where the series are the parts of stacked bars.
        from_zero: whether the vertical axis starts at 0.
    """

    key: str
    title: str
    note: str
    quantity: Quantity
    series: list[Series]
    budgets: list[Series]
    clients: list[int]
    parts: dict[int, str] | None = None
    from_zero: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether no run has recorded any of its numbers."""
        return all(value is None for series in self.series for value in series.values)


def plain(value: float) -> str:
    """A number for people, five digits or more."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.5g}"


ACCURACY = Quantity("accuracy on the test texts", ".2~%", lambda value: f"{100 * value:.2f} %")
LOSS = Quantity("cross-entropy [nats]", "", plain)
RANK = Quantity("rank of the adapter", "", plain, is_whole=True)
SECONDS = Quantity("seconds per round", "", lambda value: f"{plain(value)} s")
JOULES = Quantity("joules per round", "", lambda value: f"{plain(value)} J")
BITS = Quantity("bits", "~s", lambda value: f"{value:,.0f} bit")
SHARE = Quantity("relative error", "", plain)
CLIENTS = Quantity(
    "clients", "", lambda value: f"{plain(value)} {'client' if value == 1 else 'clients'}", is_whole=True
)


def of_round(key: str) -> Reading:
    """A field of the round."""
    return lambda run: {record["round"]: numbers([record.get(key)]) for record in run.records}


def diagnostic(key: str) -> Reading:
    """A number of the aggregation rule's own."""

    def of_record(record: dict[str, Any]) -> list[float]:
        told = record.get("diagnostics")
        return numbers([told.get(key)]) if isinstance(told, dict) else []

    return lambda run: {record["round"]: of_record(record) for record in run.records}


def ranks_of(client: int | None) -> Reading:
    """The rank of every client, or of one; 0 before training, and for who sits out."""
    recorded = of_clients("rank", client)
    return lambda run: {round: ranks if round > 0 else [0] for round, ranks in recorded(run).items()}


def labels_without_rank(lines: Sequence[Line]) -> list[str]:
    """Return the labels of the lines whose adapter method has no rank."""
    return [line.label for line in lines if not any(map(has_rank, line.runs))]


def total_so_far(key: str) -> Reading:
    """A field's sum over the clients and over the rounds up to each."""

    def read(run: RecordedRun) -> dict[int, list[float]]:
        per_round = of_clients(key)(run)
        return dict(zip(per_round, ([total] for total in accumulate(map(sum, per_round.values()))), strict=True))

    return read


def mean_train_loss(run: RecordedRun) -> dict[int, list[float]]:
    """The mean of the clients' training losses."""
    return {round: [_mean(losses)] if losses else [] for round, losses in of_clients("train_loss")(run).items()}


def latency_budget(run: RecordedRun) -> dict[int, list[float]]:
    """T0 in every round after round 0, if there is such a limit and any times were recorded."""
    times, limit_s = of_clients("latency_s")(run), run.config.budget.latency_s
    is_limited = any(times.values()) and math.isfinite(limit_s)
    return {round: [limit_s] if is_limited and round > 0 else [] for round in times}


def _mean(pool: Sequence[float]) -> float:
    return pool[0] if len(pool) == 1 else fmean(pool)


def series_of(index: int, line: Line, reading: Reading, quantity: Quantity, name: str = "") -> Series:
    """Pool the numbers of a line's runs round by round."""
    pools: dict[int, list[float]] = {}
    for run in line.runs:
        for round, found in reading(run).items():
            pools.setdefault(round, []).extend(found)
    rounds = sorted(pools)
    is_spread = any(len(pool) > 1 for pool in pools.values())
    values = [_mean(pools[round]) if pools[round] else None for round in rounds]
    low = [min(pools[round], default=None) for round in rounds]
    high = [max(pools[round], default=None) for round in rounds]
    texts = ["nothing recorded" if value is None else quantity.show(value) for value in values]
    if is_spread:
        texts = [
            text if least is None or most is None else f"mean {text}, {quantity.show(least)} to {quantity.show(most)}"
            for text, least, most in zip(texts, low, high, strict=True)
        ]
    return Series(
        line=index,
        name=name or line.label,
        rounds=rounds,
        values=values,
        low=low if is_spread else None,
        high=high if is_spread else None,
        texts=texts,
        colour=index % NUM_COLOURS,
        symbol=index // NUM_COLOURS % len(SYMBOLS),
    )
