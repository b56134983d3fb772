"""Sum a run up: one number from its rounds and clients."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import pandas as pd

from splitrank.studies.run_reader import RecordedRun

Aggregate = Callable[[RecordedRun], float | None]
"""Returns one number of a run, None where it was never recorded."""


def last_accuracy(run: RecordedRun) -> float | None:
    """Return the accuracy after the last recorded round."""
    return finite_or_none(run.rounds["accuracy"].iloc[-1])


def best_accuracy(run: RecordedRun) -> float | None:
    """Return the greatest accuracy of any round."""
    return finite_or_none(run.rounds["accuracy"].max())


def mean_rank(run: RecordedRun) -> float | None:
    """Return the mean over rounds of the participants' mean rank; rounds without participants count as rank 0."""
    ranks = run.clients["rank"]
    by_round = ranks[ranks > 0].groupby(level=0).mean().reindex(run.rounds.index).fillna(run.rounds["rank"])
    return mean_of(by_round.iloc[1:])


def mean_of(values: pd.Series) -> float | None:
    """Return the mean of the recorded values."""
    found = values.dropna()
    return fmean(found) if len(found) else None


def total(key: str) -> Aggregate:
    """Return the aggregate that sums a field over rounds and clients."""
    return lambda run: _sum(run.clients[key])


def slowest(key: str) -> Aggregate:
    """Return the aggregate that sums the slowest client's over the rounds, of those that the round waited for."""
    return lambda run: _sum(run.clients.loc[~run.clients["late"], key].groupby(level=0).max())


def finite_or_none(value: float) -> float | None:
    """Return None for NaN, which stands where nothing was recorded."""
    return None if math.isnan(value) else float(value)


def _sum(values: pd.Series) -> float | None:
    found = values.dropna()
    return math.fsum(found) if len(found) else None
