"""Charts with a line for every client, or the clients' mean and range; with the limit that each must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from splitrank.studies.report_series import NUM_COLOURS, SYMBOLS, Chart, Line, Quantity, Series, series_of
from splitrank.studies.totals import Reading, clients_of

# Above these a line for every client is a tangle; the page then draws their mean and their range.
_MAX_CLIENTS = len(SYMBOLS)
_MAX_CLIENT_LINES = 24

_OUT_OF_SIGHT = 100


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


def per_client(
    key: str,
    title: str,
    quantity: Quantity,
    lines: Sequence[Line],
    reading_of: Callable[[int | None], Reading],
    budget_of: Callable[[int | None], Reading] | None = None,
    budget_name: str = "the budget",
) -> Chart:
    """Draw a line for every client, or the clients' mean and range.

    Args:
        key, title, quantity: of the chart.
        lines: whose clients.
        reading_of: the numbers of a client, for None those of all.
        budget_of: their limits; a limit that is not there is none.
        budget_name: what these are called.
    """
    clients = _clients_apart(lines)
    alone = len(lines) == 1
    series, budgets, is_free = [], [], False
    for index, line in enumerate(lines):
        for place, client in enumerate(clients or [None]):
            name = line.label if client is None else f"{line.label}, client {client}"
            drawn = series_of(index, line, reading_of(client), quantity, name)
            if client is not None:
                drawn = replace(drawn, colour=place if alone else index, symbol=place)
            if budget_of is not None:
                limit = series_of(index, line, budget_of(client), quantity, f"{name}, budget")
                limit = replace(limit, dash="dot", colour=drawn.colour)
                budgets.append(limit)
                is_free |= _is_recorded(drawn) and not _is_recorded(limit)
                drawn = replace(drawn, texts=_against(drawn, limit))
            series.append(drawn)
    note = (
        "Of equal numbers one shows."
        if clients
        else "The line is the mean, the band goes from the lowest client to the highest."
    )
    limited = [budget for budget in budgets if _is_recorded(budget)]
    if limited and _is_out_of_sight(limited, series):
        limited = []
        note += f" The budget is more than {_OUT_OF_SIGHT} times as much, and not drawn."
    elif limited:
        note += f" Dotted: {budget_name}{' where there is one' if is_free else ''}."
    elif is_free:
        note += " There is no limit."
    drawn_budgets = _apart(limited, quantity) if is_free else _merged(limited, quantity)
    return Chart(key, title, note, quantity, series, drawn_budgets, clients)


def _is_recorded(series: Series) -> bool:
    return any(value is not None for value in series.values)


def _is_out_of_sight(budgets: Sequence[Series], series: Sequence[Series]) -> bool:
    """Whether the budgets would press all that was used onto the axis, as one does that is meant to bind nobody."""
    least = min((value for budget in budgets for value in budget.low or budget.values if value is not None), default=0)
    used = [value for one in series for value in one.high or one.values if value is not None]
    return bool(used) and least > _OUT_OF_SIGHT * max(used)


def _against(drawn: Series, limit: Series) -> list[str]:
    return [
        text if value is None else f"{text}; no limit" if most is None else f"{text}; budget {limit_text}"
        for text, value, limit_text, most in zip(drawn.texts, drawn.values, limit.texts, limit.values, strict=True)
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
    return _apart(budgets, quantity)


def _apart(budgets: Sequence[Series], quantity: Quantity) -> list[Series]:
    """One line for each budget, or its lowest and highest."""
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
