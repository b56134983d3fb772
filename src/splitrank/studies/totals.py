"""Numbers of a run, read from its records as they stand: by round and client, and summed up over the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from splitrank.studies.recorded import RecordedRun
from splitrank.traits import METHOD_TRAITS

Reading = Callable[[RecordedRun], dict[int, list[float]]]
"""From a run to round → the numbers recorded in it."""

Total = Callable[[RecordedRun], float | None]
"""From a run to one number, None where it was never recorded."""


def number(value: Any) -> float | None:
    """A recorded value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def clients_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The clients' entries of a record."""
    entries = record["clients"]
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def numbers(values: Iterable[Any]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [found for value in values if (found := number(value)) is not None]


def of_clients(key: str, client: int | None = None) -> Reading:
    """A field of every client, or of one."""
    return lambda run: {
        record["round"]: numbers(
            entry.get(key) for entry in clients_of(record) if client is None or entry.get("client") == client
        )
        for record in run.records
    }


def last_accuracy(run: RecordedRun) -> float | None:
    return number(run.records[-1]["accuracy"])


def best_accuracy(run: RecordedRun) -> float | None:
    return max(numbers(record["accuracy"] for record in run.records), default=None)


def has_rank(run: RecordedRun) -> bool:
    """Whether the run's adapters had a rank; the records of a method without one say 1, of 0.1.0's baseline 0."""
    return METHOD_TRAITS[run.config.adapter.method].has_rank and "baseline" not in run.manifest


def mean_rank(run: RecordedRun) -> float | None:
    """Return the mean over rounds of the participants' mean rank; rounds without participants count as rank 0."""
    ranks = [rank for record in run.records if record["round"] > 0 for rank in _rank_of_round(record)]
    return fmean(ranks) if ranks else None


def _rank_of_round(record: dict[str, Any]) -> list[float]:
    trained = [rank for rank in numbers(entry.get("rank") for entry in clients_of(record)) if rank > 0]
    return [fmean(trained)] if trained else numbers([record["rank"]])


def total(key: str) -> Total:
    """The sum over rounds and clients; None where the field was never recorded."""

    def read(run: RecordedRun) -> float | None:
        found = [value for values in of_clients(key)(run).values() for value in values]
        return math.fsum(found) if found else None

    return read


def slowest(key: str) -> Total:
    """The sum over rounds of the slowest client's."""

    def read(run: RecordedRun) -> float | None:
        worst = [max(values) for values in of_clients(key)(run).values() if values]
        return math.fsum(worst) if worst else None

    return read
