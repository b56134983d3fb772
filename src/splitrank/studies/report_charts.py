"""What the charts of a report show: numbers over rounds, read from the records as they stand.

A line is a run, or the mean of runs that differ in nothing but the seed. A reading takes a run to the numbers that one
quantity has in each of its rounds: one number, one for each client, or none. Nothing is rounded here but the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import fmean
from typing import Any

from splitrank.studies.recorded import RecordedRun
from splitrank.studies.totals import Reading, clients_of, numbers, of_clients

NUM_COLOURS = 8
SYMBOLS = ("●", "■", "◆", "▲", "✚", "✖", "★", "▼")
"""As text; the charts draw the same shapes in the same order."""

# Above these a line for every client is a tangle; the page then draws their mean and their range.
_MAX_CLIENTS = len(SYMBOLS)
_MAX_CLIENT_LINES = 24

_OUT_OF_SIGHT = 100

_CONSTRAINTS = ("latency", "energy", "frequency", "rank-cap")
_OTHER_CONSTRAINT, _SAT_OUT = len(_CONSTRAINTS), len(_CONSTRAINTS) + 1


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
RANK = Quantity("LoRA rank", "", plain, is_whole=True)
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
    """T0 in every round after round 0, if any times were recorded."""
    times = of_clients("latency_s")(run)
    is_timed = any(times.values())
    return {round: [run.config.budget.latency_s] if is_timed and round > 0 else [] for round in times}


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """All charts of a report, in the order of the page."""
    return [
        _simple("accuracy", "Accuracy", "Round 0 is the model before training.", ACCURACY, lines, of_round("accuracy")),
        _loss(lines),
        replace(
            _simple("rank", "Rank", "0 where no adapter was trained.", RANK, lines, of_round("rank")), from_zero=True
        ),
        _binding(lines),
        _per_client("latency", "Latency of the clients", SECONDS, lines, "latency_s", latency_budget),
        _per_client("energy", "Energy of the clients", JOULES, lines, "energy_j", "energy_budget_j"),
        _per_client("uplink", "Bits sent up by each client", BITS, lines, "uplink_bits"),
        _per_client("downlink", "Bits sent down to each client", BITS, lines, "downlink_bits"),
        _total_bits(lines),
        _simple(
            "averaging",
            "Error of averaging the factors",
            "‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖ over the clients that trained.",
            SHARE,
            lines,
            of_round("factor_averaging_error"),
        ),
    ]


def _mean(pool: Sequence[float]) -> float:
    return pool[0] if len(pool) == 1 else fmean(pool)


def _series(index: int, line: Line, reading: Reading, quantity: Quantity, name: str = "") -> Series:
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


def _simple(key: str, title: str, note: str, quantity: Quantity, lines: Sequence[Line], reading: Reading) -> Chart:
    series = [_series(index, line, reading, quantity) for index, line in enumerate(lines)]
    return Chart(key, title, note, quantity, series, [], [], from_zero=False)


def _two_kinds(
    lines: Sequence[Line], quantity: Quantity, solid: tuple[str, Reading], dashed: tuple[str, Reading]
) -> list[Series]:
    series = []
    for index, line in enumerate(lines):
        for (what, reading), dash in ((solid, "solid"), (dashed, "dash")):
            series.append(replace(_series(index, line, reading, quantity, f"{line.label}, {what}"), dash=dash))
    return series


def _loss(lines: Sequence[Line]) -> Chart:
    series = _two_kinds(lines, LOSS, ("test", of_round("loss")), ("training", mean_train_loss))
    note = (
        "Solid: on the test texts, after the round. Dashed: on the training texts, while training, mean of the clients."
    )
    return Chart("loss", "Loss", note, LOSS, series, [], [], from_zero=False)


def _total_bits(lines: Sequence[Line]) -> Chart:
    series = _two_kinds(lines, BITS, ("up", total_so_far("uplink_bits")), ("down", total_so_far("downlink_bits")))
    note = (
        "All clients together, from the first round on. Solid: up. Dashed: down; where both are equal, one line shows."
    )
    return Chart("bits", "Bits sent so far", note, BITS, series, [], [])


def _clients_apart(lines: Sequence[Line]) -> list[int]:
    """The clients to draw one by one; none where that would be too many or where runs are averaged."""
    if any(len(line.runs) > 1 for line in lines):
        return []
    found = [{_index(entry) for record in line.runs[0].records for entry in clients_of(record)} for line in lines]
    clients = sorted(set().union(*found) - {-1})
    fits = len(clients) <= _MAX_CLIENTS and len(lines) <= NUM_COLOURS and sum(map(len, found)) <= _MAX_CLIENT_LINES
    return clients if fits else []


def _index(entry: dict[str, Any]) -> int:
    index = entry.get("client")
    return index if isinstance(index, int) else -1


def _per_client(
    key: str,
    title: str,
    quantity: Quantity,
    lines: Sequence[Line],
    field: str,
    budget: Reading | str | None = None,
) -> Chart:
    """A line for every client, or the clients' mean and range; with the limit that each must keep."""
    clients = _clients_apart(lines)
    alone = len(lines) == 1
    series, budgets = [], []
    for index, line in enumerate(lines):
        for place, client in enumerate(clients or [None]):
            name = line.label if client is None else f"{line.label}, client {client}"
            drawn = _series(index, line, of_clients(field, client), quantity, name)
            if client is not None:
                drawn = replace(drawn, colour=place if alone else index, symbol=place)
            if budget is not None:
                reading = of_clients(budget, client) if isinstance(budget, str) else budget
                limit = replace(_series(index, line, reading, quantity, f"{name}, budget"), dash="dot")
                limit = replace(limit, colour=drawn.colour)
                budgets.append(limit)
                drawn = replace(drawn, texts=_against(drawn, limit))
            series.append(drawn)
    note = (
        "Of equal numbers one shows."
        if clients
        else "The line is the mean, the band goes from the lowest client to the highest."
    )
    if budgets and _is_out_of_sight(budgets, series):
        budgets = []
        note += f" The budget is more than {_OUT_OF_SIGHT} times as much, and not drawn."
    elif budgets:
        note += f" Dotted: the budget{' of each client' if isinstance(budget, str) else ''}."
    return Chart(key, title, note, quantity, series, _merged(budgets, quantity), clients)


def _is_out_of_sight(budgets: Sequence[Series], series: Sequence[Series]) -> bool:
    """Whether the budgets would press all that was used onto the axis, as one does that is meant to bind nobody."""
    least = min((value for budget in budgets for value in budget.low or budget.values if value is not None), default=0)
    used = [value for one in series for value in one.high or one.values if value is not None]
    return bool(used) and least > _OUT_OF_SIGHT * max(used)


def _against(drawn: Series, limit: Series) -> list[str]:
    limits = dict(zip(limit.rounds, limit.texts, strict=True))
    return [
        text if value is None else f"{text}; budget {limits[round]}"
        for text, value, round in zip(drawn.texts, drawn.values, drawn.rounds, strict=True)
    ]


def _merged(budgets: Sequence[Series], quantity: Quantity) -> list[Series]:
    """One neutral line where all budgets are the same; else one for every line, or its lowest and highest."""
    levels = {value for budget in budgets for ends in (budget.low, budget.values, budget.high) for value in ends or []}
    levels.discard(None)
    if len(levels) == 1:
        level = levels.pop()
        assert level is not None
        rounds = sorted({round for budget in budgets for round in budget.rounds})
        text = [quantity.show(level)] * len(rounds)
        return [Series(None, "budget", rounds, [level] * len(rounds), None, None, text, dash="dot")]
    separate: list[Series] = []
    for budget in budgets:
        if budget.low is None or budget.high is None:
            separate.append(budget)
        else:
            separate += [_end(budget, "lowest", budget.low, quantity), _end(budget, "highest", budget.high, quantity)]
    return separate


def _end(budget: Series, what: str, values: list[float | None], quantity: Quantity) -> Series:
    texts = ["nothing recorded" if value is None else quantity.show(value) for value in values]
    return replace(budget, name=f"{budget.name}, {what}", values=values, low=None, high=None, texts=texts)


def _binding(lines: Sequence[Line]) -> Chart:
    """For every round how many of the clients that trained are held by what, and how many sat out."""
    found = {entry["binding"] for line in lines for run in line.runs for record in run.records
             for entry in clients_of(record) if isinstance(entry.get("binding"), str)}  # fmt: skip
    constraints = [name for name in _CONSTRAINTS if name in found] + sorted(found - set(_CONSTRAINTS))
    sat_out = any(values[0] for line in lines for run in line.runs for values in _count(None)(run).values() if values)
    series = []
    for index, line in enumerate(lines):
        for constraint in (*constraints, None) if sat_out else constraints:
            what = "sat out" if constraint is None else f"limited by {constraint}"
            one = _series(index, line, _count(constraint), CLIENTS, f"{line.label}, {what}")
            part = _part(constraint)
            colour = part if len(lines) == 1 else one.colour
            one = replace(one, low=None, high=None, part=part, colour=colour)
            if constraint is None and len(line.runs) == 1:
                one = replace(one, texts=_with_names(one, line.runs[0]))
            series.append(one)
    others = [name for name in constraints if name not in _CONSTRAINTS]
    parts = {_part(name): ", ".join(others) if name in others else name for name in constraints}
    note = "What stands in the way of a client's next higher rank."
    if sat_out:
        parts[_SAT_OUT] = "sat out"
        note += " Clients that sat the round out are counted on top, and only there."
    else:
        note += " No client sat a round out."
    if any(len(line.runs) > 1 for line in lines):
        note += " For several runs: the mean number per run."
    return Chart("binding", "What limits the clients", note, CLIENTS, series, [], [], parts=parts)


def _part(constraint: str | None) -> int:
    if constraint is None:
        return _SAT_OUT
    return _CONSTRAINTS.index(constraint) if constraint in _CONSTRAINTS else _OTHER_CONSTRAINT


def _count(constraint: str | None) -> Reading:
    """How many clients trained and are held by the constraint; for None how many sat out."""

    def holds(entry: dict[str, Any]) -> bool:
        sat_out = entry.get("dropped") is True
        return sat_out if constraint is None else not sat_out and entry.get("binding") == constraint

    return lambda run: {
        record["round"]: [sum(map(holds, planned))] if planned else []
        for record in run.records
        for planned in [[entry for entry in clients_of(record) if "binding" in entry]]
    }


def _with_names(sat_out: Series, run: RecordedRun) -> list[str]:
    names = {
        record["round"]: [
            f"client {entry.get('client')} ({entry.get('binding')})"
            for entry in clients_of(record)
            if entry.get("dropped") is True
        ]
        for record in run.records
    }
    texts = []
    for round, text in zip(sat_out.rounds, sat_out.texts, strict=True):
        who = names[round]
        rest = f" and {len(who) - 8} more" if len(who) > 8 else ""
        texts.append(f"{text}: {', '.join(who[:8])}{rest}" if who else text)
    return texts
