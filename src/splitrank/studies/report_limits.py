"""The chart of what limits the clients: how many are held by what in every round, and how many sat out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from splitrank.studies.recorded import RecordedRun
from splitrank.studies.report_series import CLIENTS, Chart, Line, Series, labels_without_rank, series_of
from splitrank.studies.totals import Reading, clients_of, has_rank

_CONSTRAINTS = ("latency", "energy", "frequency", "rank-cap")
_OTHER_CONSTRAINT, _SAT_OUT = len(_CONSTRAINTS), len(_CONSTRAINTS) + 1


def binding_chart(lines: Sequence[Line]) -> Chart:
    """Count in every round the clients that are held by each constraint, and those that sat out."""
    found = {entry["binding"] for line in lines for run in line.runs if has_rank(run) for record in run.records
             for entry in clients_of(record) if isinstance(entry.get("binding"), str)}  # fmt: skip
    constraints = [name for name in _CONSTRAINTS if name in found] + sorted(found - set(_CONSTRAINTS))
    sat_out = any(values[0] for line in lines for run in line.runs for values in _count(None)(run).values() if values)
    series = []
    for index, line in enumerate(lines):
        for constraint in (*constraints, None) if sat_out else constraints:
            what = "sat out" if constraint is None else f"limited by {constraint}"
            one = series_of(index, line, _count(constraint), CLIENTS, f"{line.label}, {what}")
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
    if rankless := labels_without_rank(lines):
        note += f" Without a rank, so that only who sits out is counted: {', '.join(rankless)}."
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
        record["round"]: [sum(map(holds, planned))] if planned and (constraint is None or has_rank(run)) else []
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
