"""Gather what the charts of a report show: recorded numbers over rounds, a series for each line of the page.

A line is a run, or several runs that differ in nothing but the seed: then their mean is drawn, with a band from the
lowest to the highest. Nothing is rounded here but the texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from splitrank.studies.run_reader import RecordedRun

NUM_COLOURS, NUM_SYMBOLS = 8, 8
_SAT_OUT, _PASSED_OVER = "sat out", "not chosen"
FILLINGS = ("latency", "energy", "frequency", "rank-cap", "other", _SAT_OUT, _PASSED_OVER)
"""Parts of a bar: clients held back by a constraint, those that sat out, and those that were not chosen."""

# Above these a line for every client is a tangle; the page then draws their mean and their range.
_MAX_CLIENTS, _MAX_CLIENT_LINES = NUM_SYMBOLS, 24
_MAX_NAMED_CLIENTS = 8
_OUT_OF_SIGHT = 100


def plain(value: float) -> str:
    """Return a number for people, five digits or more."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.5g}"


def shortened(text: str, length: int = 80) -> str:
    """Return a text of at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@dataclass(frozen=True)
class Quantity:
    """How numbers of one kind are shown: title and d3's format of their axis, and each as text."""

    axis: str
    show: Callable[[float], str] = plain
    tick_format: str = ""
    is_whole: bool = False
    from_zero: bool = True


ACCURACY = Quantity("accuracy on the test texts", lambda value: f"{100 * value:.2f} %", ".2~%", from_zero=False)
LOSS = Quantity("cross-entropy [nats]", from_zero=False)
RANK = Quantity("rank of the adapter", is_whole=True)
SECONDS = Quantity("seconds per round", lambda value: f"{plain(value)} s")
JOULES = Quantity("joules per round", lambda value: f"{plain(value)} J")
BITS = Quantity("bits", lambda value: f"{value:,.0f} bit", "~s")
SHARE = Quantity("relative error", from_zero=False)
CLIENTS = Quantity("clients", lambda value: f"{plain(value)} {'client' if value == 1 else 'clients'}", is_whole=True)


@dataclass(frozen=True)
class Line:
    """One run, or several of which mean and range are drawn.

    Attributes:
        label: as the user wrote it, not escaped.
        runs: at least one.
        rounds, clients: those of all runs, with the columns that only a chart needs.
    """

    label: str
    runs: tuple[RecordedRun, ...]
    rounds: pd.DataFrame
    clients: pd.DataFrame

    @property
    def has_rank(self) -> bool:
        """Return whether the adapters of any run had a rank."""
        return any(run.has_rank for run in self.runs)


@dataclass(frozen=True)
class Series:
    """Numbers over rounds.

    Attributes:
        name: of the run or client; not escaped.
        line: index of the line with which it is shown and hidden; None for a budget that is the same for all.
        numbers: ``mean``, ``min``, ``max`` and, for people, ``text``, indexed by round; NaN if nothing was recorded.
        is_range: True where ``mean`` averages several numbers, so that the range is drawn, too.
        colour: index of the colour, None for a neutral one.
        symbol, filling: index of the marker, or of a bar's filling.
        key: the meaning of marker or filling where the page explains it.
        dash: Plotly's name of the line's style; budgets are ``"dot"``.
    """

    name: str
    line: int | None
    numbers: pd.DataFrame
    is_range: bool
    colour: int | None
    symbol: int = 0
    filling: int = 0
    key: str = ""
    dash: str = "solid"

    @property
    def is_recorded(self) -> bool:
        """Return whether there is any number."""
        return bool(self.numbers["mean"].notna().any())


@dataclass(frozen=True)
class Chart:
    """One chart: its name in the page, its heading, how to read it, and all that is drawn. Texts are not escaped.

    Numbers go over rounds, or ``over`` clients.
    """

    key: str
    title: str
    note: str
    quantity: Quantity
    series: Sequence[Series]
    is_stacked: bool = False
    over: str = "round"

    @property
    def is_empty(self) -> bool:
        """Return whether no run has recorded any of its numbers."""
        return not any(series.is_recorded for series in self.series)


def line_of(label: str, runs: Sequence[RecordedRun]) -> Line:
    """Return the line of one run, or of several that differ in the seed."""
    frames = [(_rounds(run), _clients(run)) for run in runs]
    return Line(label, tuple(runs), *(pd.concat(parts) for parts in zip(*frames, strict=True)))


def _rounds(run: RecordedRun) -> pd.DataFrame:
    by_round = run.clients.groupby(level=0)
    frame = run.rounds.assign(
        train_loss=by_round["train_loss"].mean(),
        uplink_so_far=by_round["uplink_bits"].sum().cumsum(),
        downlink_so_far=by_round["downlink_bits"].sum().cumsum(),
    )
    return frame if run.has_rank else frame.assign(rank=math.nan)


def _clients(run: RecordedRun) -> pd.DataFrame:
    """Return the clients with their rank before training, 0, their latency budget, and what holds each back, if any."""
    clients, limit_s = run.clients, run.config.budget.latency_s
    is_trained = clients.index > 0
    is_limited = math.isfinite(limit_s) and clients["latency_s"].notna().any()
    passed_over = clients["passed_over"]
    sat_out = clients["dropped"] & clients["binding"].notna() & ~passed_over
    return clients.assign(
        rank=clients["rank"].where(is_trained, 0.0) if run.has_rank else math.nan,
        latency_budget_s=pd.Series(limit_s if is_limited else math.nan, clients.index, float).where(is_trained),
        held_by=clients["binding"]
        .where(~sat_out, _SAT_OUT)
        .where(~passed_over, _PASSED_OVER)
        .where(sat_out | passed_over | run.has_rank),
    )


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """Return all charts of a report in the page's order; those of what no run has by its settings are left out."""

    def chart(key: str, title: str, note: str, quantity: Quantity, **columns: str) -> Chart:
        """Draw one column of the rounds for each line, or two: the first solid, the second dashed, both named."""
        series = [
            _series(line, index, line.rounds[column], quantity, f", {name}" * (len(columns) > 1), dash=dash)
            for index, line in enumerate(lines)
            for (name, column), dash in zip(columns.items(), ("solid", "dash"), strict=False)
        ]
        return Chart(key, title, note, quantity, series)

    loss = (
        "Solid: on the test texts, after the round. Dashed: on the training texts, while training, mean of the clients."
    )
    bits = (
        "All clients together, from the first round on. Solid: up. Dashed: down; where both are equal, one line shows."
    )
    averaging = "‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖ over the clients that trained."
    cutting = "Share of the norm of the clients' mean product that does not fit into the global rank."
    charts = [
        chart("accuracy", "Accuracy", "Round 0 is the model before training.", ACCURACY, all="accuracy"),
        chart("loss", "Loss", loss, LOSS, test="loss", training="train_loss"),
        _ranks(lines, chart("rank", "Rank", "", RANK, all="rank")),
        _limits(lines),
        _per_client("latency", "Latency of the clients", SECONDS, lines, "latency_s", "latency_budget_s"),
        _per_client("energy", "Energy of the clients", JOULES, lines, "energy_j", "energy_budget_j",
                    "the budget of each client"),
        _per_client("uplink", "Bits sent up by each client", BITS, lines, "uplink_bits"),
        _per_client("downlink", "Bits sent down to each client", BITS, lines, "downlink_bits"),
        chart("bits", "Bits sent so far", bits, BITS, up="uplink_so_far", down="downlink_so_far"),
        chart("averaging", "Error of averaging the factors", averaging, SHARE, all="factor_averaging_error"),
        chart("truncation", "Error of cutting the mean", cutting, SHARE, all="truncation_error"),
    ]  # fmt: skip
    ranked = [run for line in lines for run in line.runs if run.has_rank]
    averages = any(run.config.federation.aggregation == "fedavg" for run in ranked)
    expected = {"rank": bool(ranked), "binding": bool(ranked), "averaging": averages, "truncation": False}
    return [chart for chart in charts if not chart.is_empty or expected.get(chart.key, True)]


def _series(line: Line, index: int, values: pd.Series, quantity: Quantity, suffix: str = "", **look: Any) -> Series:
    """Pool a line's numbers round by round."""
    pool, rounds = values.groupby(level=0), sorted(set(line.rounds.index))
    numbers, is_range = pool.agg(["mean", "min", "max"]).reindex(rounds), bool((pool.count() > 1).any())
    mean, low, high = (_texts(numbers[key], quantity) for key in ("mean", "min", "max"))
    text = ("mean " + mean + ", " + low + " to " + high).where(numbers["mean"].notna(), mean) if is_range else mean
    looks = {"colour": index % NUM_COLOURS, "symbol": index // NUM_COLOURS % NUM_SYMBOLS} | look
    return Series(line.label + suffix, index, numbers.assign(text=text), is_range, **looks)


def _texts(values: pd.Series, quantity: Quantity) -> pd.Series:
    return values.map(lambda value: "nothing recorded" if math.isnan(value) else quantity.show(value)).astype(object)


def _ranks(lines: Sequence[Line], common: Chart) -> Chart:
    """Draw the common rank of each line; where clients of any had ranks of their own, every client's."""
    ranks = [run.clients["rank"] for line in lines for run in line.runs if run.has_rank]
    is_common = all((one[one > 0].groupby(level=0).nunique() < 2).all() for one in ranks)
    chart = common if is_common else _per_client("rank", "Rank of each client", RANK, lines, "rank")
    note = f"{chart.note} 0 where no adapter was trained.{_rankless(lines, 'and not drawn')}".strip()
    return replace(chart, note=note, series=[one for one in chart.series if one.is_recorded])


def _rankless(lines: Sequence[Line], consequence: str) -> str:
    labels = ", ".join(line.label for line in lines if not line.has_rank)
    return f" Without a rank, {consequence}: {labels}." if labels else ""


def _limits(lines: Sequence[Line]) -> Chart:
    """Count in every round the clients that each constraint holds back, and those that sat out."""
    found = {name for line in lines for key in ("held_by", *["binding"] * line.has_rank)
             for name in line.clients[key].dropna()}  # fmt: skip
    others = sorted(found - set(FILLINGS))
    absent = [name for name in (_SAT_OUT, _PASSED_OVER) if name in found]
    held = [name for name in FILLINGS if name in found and name not in absent] + others + absent
    series = []
    for index, line in enumerate(lines):
        planned = line.clients[line.clients["binding"].notna()]
        for what in held:
            filling = FILLINGS.index("other" if what in others else what)
            rows = planned if what in absent else planned[planned["held_by"].notna()]
            # Of several runs the mean number per run.
            counts = (rows["held_by"] == what).groupby(level=0).sum() / line.rounds.groupby(level=0).size()
            one = _series(line, index, counts, CLIENTS, f", {'' if what in absent else 'limited by '}{what}",
                          filling=filling, key=", ".join(others) if what in others else what)  # fmt: skip
            if len(lines) == 1:
                one = replace(one, colour=filling)
            if what == _SAT_OUT and len(line.runs) == 1:
                one = replace(one, numbers=_with_names(one.numbers, planned[planned["held_by"] == _SAT_OUT]))
            series.append(one)
    note = "What stands in the way of a client's next higher rank."
    if _SAT_OUT in found:
        note += " Clients that sat the round out are counted on top, and only there."
    else:
        note += " No client sat a round out."
    if _PASSED_OVER in found:
        note += " Clients that could have taken part and were not chosen are counted likewise."
    note += _rankless(lines, "so that only who sits out is counted")
    if any(len(line.runs) > 1 for line in lines):
        note += " For several runs: the mean number per run."
    return Chart("binding", "What limits the clients", note, CLIENTS, series, is_stacked=True)


def _with_names(numbers: pd.DataFrame, absent: pd.DataFrame) -> pd.DataFrame:
    names = "client " + absent["client"].astype(str) + " (" + absent["binding"] + ")"
    texts = dict(numbers["text"])
    for round, of_round in names.groupby(level=0):
        rest = f" and {len(of_round) - _MAX_NAMED_CLIENTS} more" if len(of_round) > _MAX_NAMED_CLIENTS else ""
        texts[round] += f": {', '.join(of_round[:_MAX_NAMED_CLIENTS])}{rest}"
    return numbers.assign(text=pd.Series(texts))


def _clients_apart(lines: Sequence[Line]) -> list[int]:
    """Return the clients to draw one by one; none where that would be too many or where runs are averaged."""
    found = [set(line.clients["client"]) - {-1} for line in lines]
    clients = sorted(set().union(*found))
    is_averaged = any(len(line.runs) > 1 for line in lines)
    fits = len(clients) <= _MAX_CLIENTS and len(lines) <= NUM_COLOURS and sum(map(len, found)) <= _MAX_CLIENT_LINES
    return clients if fits and not is_averaged else []


def _per_client(
    key: str,
    title: str,
    quantity: Quantity,
    lines: Sequence[Line],
    column: str,
    budget: str | None = None,
    budget_name: str = "the budget",
) -> Chart:
    """Draw a column of the clients: a line for every client, or their mean and range.

    Args:
        key, title, quantity, lines, column: of the chart.
        budget: the column of the limit that each must keep; NaN is no limit.
        budget_name: the name of the limits in the note.
    """
    apart = _clients_apart(lines)
    series: list[Series] = []
    budgets: list[Series] = []
    is_free = False
    for index, line in enumerate(lines):
        for place, client in enumerate(apart or [None]):
            suffix, look, rows = "", {}, line.clients
            if client is not None:
                suffix, rows = f", client {client}", rows[rows["client"] == client]
                look = {"colour": place if len(lines) == 1 else index, "symbol": place, "key": f"client {client}"}
            one = _series(line, index, rows[column], quantity, suffix, **look)
            if budget is not None:
                limit = _series(line, index, rows[budget], quantity, f"{suffix}, budget", **look, dash="dot")
                is_free |= one.is_recorded and not limit.is_recorded
                told = ("; budget " + limit.numbers["text"]).where(limit.numbers["mean"].notna(), "; no limit")
                text = one.numbers["text"] + told.where(one.numbers["mean"].notna(), "")
                one = replace(one, numbers=one.numbers.assign(text=text))
                budgets += [limit] * limit.is_recorded
            series.append(one)
    note = "The line is the mean, the band goes from the lowest client to the highest."
    if apart:
        note = "Of equal numbers one shows."
    used = pd.concat([one.numbers["max"] for one in series]).max()
    levels = {level for limit in budgets for level in (limit.numbers["min"].min(), limit.numbers["max"].max())}
    if budgets and min(levels) > _OUT_OF_SIGHT * used:
        # It would press all that was used onto the axis, as a budget does that is meant to bind nobody.
        budgets = []
        note += f" The budget is more than {_OUT_OF_SIGHT} times as much, and not drawn."
    elif budgets:
        note += f" Dotted: {budget_name}{' where there is one' * is_free}."
    elif is_free:
        note += " There is no limit."
    if len(levels) == 1 and budgets and not is_free:
        longest = max(budgets, key=lambda limit: len(limit.numbers)).numbers
        level = longest.assign(mean=longest["mean"].fillna(*levels), text=quantity.show(*levels))
        budgets = [Series("budget", None, level, is_range=False, colour=None, dash="dot")]
    return Chart(key, title, note, quantity, [*series, *budgets])
