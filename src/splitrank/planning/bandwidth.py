"""Share one band among the clients together with the rank: whoever needs more of it gets more.

Wen, Bennis and Huang, "Joint parameter-and-bandwidth allocation for improving the efficiency of partitioned edge
learning", IEEE TWC 19(12), 2020, split a model and a band so that a round is shortest. Here the model is whole, the
budgets are given and the rank is to be as large as it can:

    maximise r  subject to  Σ_i B_i <= B_total  and E1 to E4 of P1 at the rates of the sub-bands B_i

Both rates grow with the sub-band, so what is left for computing, in time and in energy, grows with it too, and the
sub-bands with which a rank fits client i are those from some least one, B_i^min(r), on. It grows with r. So a rank fits
all together exactly when Σ_i B_i^min(r) <= B_total, and halving the integers finds the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitrank.planning.least_bands import band_of, fits_together, min_band, with_rates
from splitrank.planning.problem import BoolArray, FloatArray, IntArray, Problem, feasible, subproblem, unchecked
from splitrank.planning.workload import Rank


def at_bands(problem: Problem, bandwidth_hz: FloatArray) -> Problem:
    """Return the problem at the rates of sub-bands; a client whose sub-band is NaN keeps its rates.

    A broadcast runs at the rate of the slowest client that has a sub-band.

    Args:
        problem: the round, with or without a band.
        bandwidth_hz: B_i [Hz], shape (I,).
    """
    given = ~np.isnan(bandwidth_hz)
    if problem.band is None or not given.any():
        return problem
    at = with_rates(_listening(problem, given), np.where(given, bandwidth_hz, problem.band.share_hz))
    return replace(
        problem,
        uplink_bps=np.where(given, at.uplink_bps, problem.uplink_bps),
        downlink_bps=np.where(given, at.downlink_bps, problem.downlink_bps),
    )


def largest_common_rank(problem: Problem) -> int:
    """Return the largest rank that all clients can have at once; every one's floor must fit already.

    r* = max{r : Σ_i B_i^min(r) <= B_total}, by halving the integers between the largest floor and the least ceiling.
    """
    low = int(problem.rank_floor.max())
    high = int(np.minimum(problem.rank_cap, problem.rank_ceiling).min())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits_together(problem, middle) else (low, middle - 1)
    return low


def least_time_s(problem: Problem, rank: Rank) -> float:
    """Return the least time in which all clients can do a rank that fits them together, the slowest's [s].

    T* = min{T : Σ_i B_i^min(r; T0 = T) <= B_total}, by halving T; the end that fits is returned.
    """
    high_s = problem.deadline_s
    if math.isinf(high_s):
        high_s = 1.0
        while not fits_together(_within(problem, high_s), rank):
            high_s *= 2.0
    low_s = 0.0
    while low_s < (middle_s := (low_s + high_s) / 2) < high_s and high_s - low_s > 1e-12 * high_s:
        fits = fits_together(_within(problem, middle_s), rank)
        low_s, high_s = (low_s, middle_s) if fits else (middle_s, high_s)
    return high_s


def _within(problem: Problem, deadline_s: float) -> Problem:
    return unchecked(problem, latency_budget_s=deadline_s, latency_margin=0.0)


def shared_out(problem: Problem, rank: Rank, least_hz: FloatArray) -> FloatArray:
    """Return sub-bands that use up the band: the least ones, all widened alike.

    B_i = B_i^min·B_total/Σ_j B_j^min

    Wen, Bennis and Huang leave nothing over, as their rank is real. Where the least sub-bands are the equal shares, the
    sub-bands are these.
    """
    band, needed_hz = band_of(problem), math.fsum(least_hz)
    if needed_hz == 0:
        return np.full(len(least_hz), band.share_hz)
    if needed_hz > band.total_hz:  # by rounding alone
        return np.full(len(least_hz), band.share_hz) if np.all(least_hz <= band.share_hz) else least_hz
    wider_hz = least_hz * (band.total_hz / needed_hz)
    # Of two neighbouring floats the wider band need not have the higher rate.
    return np.where(feasible(with_rates(problem, wider_hz), rank), wider_hz, least_hz)


def _listening(problem: Problem, listeners: BoolArray) -> Problem:
    """Return the problem with a broadcast at the rate of the slowest listener, or none slower than it."""
    if not band_of(problem).is_broadcast or not listeners.any():
        return problem
    slowest_bps = problem.downlink_bps[listeners].min()
    return unchecked(problem, downlink_bps=np.minimum(problem.downlink_bps, slowest_bps))


@dataclass(frozen=True)
class Allocation:
    """Who takes part, and how the band is shared. Arrays have shape (I,).

    Attributes:
        participants: clients that have a sub-band.
        rank: r, 0 for one that does not take part.
        bandwidth_hz: B_i [Hz], NaN for one that does not take part.
        least_hz: least sub-band at the rank floor [Hz], for everyone who was asked where somebody does not take part;
            else NaN.
        is_optimal: whether no other allocation is better.
        gap: how far the utility of unequal ranks is from a bound on the best, as a share of it; 0 for an optimum.
    """

    participants: BoolArray
    rank: IntArray
    bandwidth_hz: FloatArray
    least_hz: FloatArray
    is_optimal: bool = True
    gap: float = 0.0


Shares = Callable[[Problem], tuple[IntArray, FloatArray, float | None]]
"""Ranks and sub-bands [Hz] of clients all of whom can take part at their floors, and the gap, None for an optimum."""


def allocate(problem: Problem, asked: BoolArray, shares: Shares, *, require_all: bool) -> Allocation:
    """Share the band among those who can take part.

    Every one of them must get its rank floor. Where not everybody can, nobody takes part if all are required;
    otherwise those who need most to do their floor are left out, so that as many as can take part do. Nobody who could
    take part with an equal share is left out: those need no more than their shares, and so come first.

    Args:
        problem: the round, with a band for as many as are asked.
        asked: clients that may take part, shape (I,).
        shares: how those who take part share the band.
        require_all: whether all that are asked must take part.
    """
    members, least_hz = _members(problem, asked, require_all=require_all)
    rank, bandwidth_hz = np.zeros(len(asked), np.int64), np.full(len(asked), np.nan)
    gap = None
    if members.any():
        rank[members], bandwidth_hz[members], gap = shares(_of(problem, members))
    return Allocation(members, rank, bandwidth_hz, least_hz, gap is None, gap or 0.0)


def _of(problem: Problem, members: BoolArray) -> Problem:
    heard = _listening(problem, members)
    return heard if members.all() else subproblem(heard, np.flatnonzero(members))


def _members(problem: Problem, asked: BoolArray, *, require_all: bool) -> tuple[BoolArray, FloatArray]:
    """Return who can take part at its floor, and every client's least sub-band for it where not everybody can."""
    members, unknown_hz = asked.copy(), np.full(len(asked), np.nan)
    if not members.any() or fits_together(part := _of(problem, members), part.rank_floor):
        return members, unknown_hz
    least_hz = unknown_hz.copy()
    if band_of(problem).is_broadcast and not require_all:
        # Who cannot take part even at its own rate holds nobody up.
        members &= ~np.isinf(_least_at_floor(problem))
        least_hz[asked & ~members] = np.inf
    while members.any():
        least_hz[members] = _least_at_floor(_of(problem, members))
        if require_all:
            return np.zeros_like(members), least_hz
        without_end = members & np.isinf(least_hz)
        members &= ~without_end
        if not without_end.any() or not band_of(problem).is_broadcast:
            break  # else the others hear a faster broadcast now
    kept = np.flatnonzero(members)[np.argsort(least_hz[members], kind="stable")]
    band, sorted_hz = band_of(problem), least_hz[kept]
    # Equal shares fit all who need no more, even where rounding makes their sum too large.
    count = max(np.count_nonzero(np.cumsum(sorted_hz) <= band.total_hz), np.count_nonzero(sorted_hz <= band.share_hz))
    members[kept[count:]] = False
    return members, least_hz


def _least_at_floor(problem: Problem) -> FloatArray:
    return np.where(problem.rank_floor <= problem.rank_cap, min_band(problem, problem.rank_floor), np.inf)


def common_rank_shares(problem: Problem) -> tuple[IntArray, FloatArray, None]:
    """Give all the largest common rank, and what is left of the band in proportion."""
    rank = largest_common_rank(problem)
    return np.full(problem.num_clients, rank), shared_out(problem, rank, min_band(problem, rank)), None


def least_time_shares(problem: Problem) -> tuple[IntArray, FloatArray, None]:
    """Give all their rank floors, and the sub-bands with which the slowest is done first."""
    rank = problem.rank_floor
    quickest = _within(problem, least_time_s(problem, rank))
    return rank, shared_out(quickest, rank, min_band(quickest, rank)), None
