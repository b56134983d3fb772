"""Choose whose participation is worth it: a weak client holds the common rank down for everybody.

    maximise Σ_{i in S} n_i·log(1 + r)  over sets S of clients and ranks r that fit all of S

n_i are the clients' training texts, which weigh them in the average. With equal shares of the band those who can do a
rank are known, so r is one of the largest ranks r_i*, and the first clients in their order are the best set for it. On
a band shared by need Σ_i B_i^min(r) <= B_total bounds S: with equal n_i the clients that need least are the best set;
with unequal ones it is a knapsack, which is filled in the order of B_i^min(r)/n_i and bounded by the same with a part
of one client (Dantzig, "Discrete-variable extremum problems", Operations Research 5(2), 1957).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitrank.planning.least_bands import band_of, bands_of_ranks
from splitrank.planning.problem import BoolArray, FloatArray, IntArray, Problem


@dataclass(frozen=True)
class WorthIt:
    """The clients that are worth it.

    Attributes:
        members: who takes part, bool, shape (I,).
        rank: that all of them can do, 0 if nobody takes part.
        value: Σ n_i·log(1 + r).
        bound: what no other set and rank exceed.
    """

    members: BoolArray
    rank: int
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """Return how far the value may be from the best, as a share of the bound."""
        return 0.0 if self.bound <= self.value else 1.0 - self.value / self.bound


def worth_at_equal_shares(able: BoolArray, rank: IntArray, weights: FloatArray, least_clients: int) -> WorthIt:
    """Return the best set at the rates of the problem; of two that are worth the same, the larger.

    Args:
        able: clients that may take part, shape (I,).
        rank: the largest that each can do, shape (I,), >= 1 where it is able.
        weights: n_i > 0, shape (I,).
        least_clients: how many must take part; all that are able where there are fewer.
    """
    members = np.flatnonzero(able)
    if not len(members):
        return WorthIt(np.zeros_like(able), 0, 0.0, 0.0)
    ranks = np.unique(rank[members])
    # Σ n_i of those who can do each rank, without the rounding of a running sum in the clients' order.
    order = np.sort(rank[members])
    counts = len(members) - np.searchsorted(order, ranks)
    weight_of = np.bincount(np.searchsorted(ranks, rank[members]), weights[members])
    value = np.log1p(ranks) * np.cumsum(weight_of[::-1])[::-1]
    allowed = counts >= min(least_clients, len(members))
    best = int(np.argmax(np.where(allowed, value, -np.inf)))
    return WorthIt(able & (rank >= ranks[best]), int(ranks[best]), float(value[best]), float(value[best]))


def worth_on_shared_band(problem: Problem, asked: BoolArray, weights: FloatArray, least_clients: int) -> WorthIt:
    """Return the best set that is found, and a bound, on a band that is shared by need.

    Args:
        problem: the round, with a band and a unicast downlink.
        asked: clients that may take part, shape (I,).
        weights: n_i > 0, shape (I,).
        least_clients: how many must take part; where no rank allows it, as many as can.
    """
    last = np.minimum(problem.rank_cap, problem.rank_ceiling)
    best, bound = WorthIt(np.zeros_like(asked), 0, 0.0, 0.0), 0.0
    fewest = least_clients
    first = int(problem.rank_floor.max())
    num_ranks = max(0, int(last.max()) + 1 - first)
    for rank, needed_hz in enumerate(bands_of_ranks(problem, first, num_ranks), first):
        least_hz = np.where(asked & (rank <= last), needed_hz, np.inf)
        members, most = _knapsack(least_hz, weights, band_of(problem).room_hz)
        if np.count_nonzero(members) < fewest:
            members, _ = _knapsack(least_hz, np.ones_like(weights), band_of(problem).room_hz)
        count = int(np.count_nonzero(members))
        if best.rank == 0:  # the smallest rank allows most clients
            fewest = min(least_clients, count)
        if count < max(fewest, 1):
            break  # and larger ranks allow no more
        value, most = np.log1p(rank) * float(weights[members].sum()), np.log1p(rank) * most
        bound = max(bound, most)
        if value > best.value:
            best = WorthIt(members, rank, value, value)
    is_exact = np.all(weights == weights[0])
    return WorthIt(best.members, best.rank, best.value, best.value if is_exact else max(bound, best.value))


def _knapsack(least_hz: FloatArray, weights: FloatArray, total_hz: float) -> tuple[BoolArray, float]:
    """Return who is packed, those who need least for their weight first, and a bound on the weight."""
    order = np.argsort(least_hz / weights, kind="stable")
    order = order[np.isfinite(least_hz[order])]
    used_hz = np.cumsum(least_hz[order])
    fits = int(np.searchsorted(used_hz, total_hz, side="right"))
    members = np.zeros(len(least_hz), np.bool_)
    members[order[:fits]] = True
    bound, spare_hz = float(weights[order[:fits]].sum()), total_hz - (used_hz[fits - 1] if fits else 0.0)
    if fits < len(order):
        bound += float(weights[order[fits]] * spare_hz / least_hz[order[fits]])
    rest = order[fits:]
    for client in rest[least_hz[rest] <= spare_hz]:
        if least_hz[client] <= spare_hz:
            members[client] = True
            spare_hz -= least_hz[client]
    return members, bound
