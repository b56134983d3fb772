"""Tell what a budget is worth: the price of one more unit, and the budget that buys the next rank.

The price is the slope of the largest real rank in a budget, the shadow price of P1's relaxation. That of an integer
rank is 0 almost everywhere, so beside it stands the least budget with which rank r + 1 fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitrank.planning.bandwidth import at_bands
from splitrank.planning.least_bands import fits_together
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem, feasible, subproblem, unchecked
from splitrank.planning.solvers.branch_and_bound import relaxation

_STEP = 1e-4
_MOST_FACTOR = 2.0**40
_HALVINGS = 60


@dataclass(frozen=True)
class Price:
    """What a budget is worth.

    Attributes:
        budget: ``"latency_s"``, every client's ``"energy_j"`` or ``"memory_bytes"``, or ``"bandwidth_hz"``, the whole.
        given: how much there is; the mean where the clients' budgets differ.
        ranks_per_unit: slope of the largest real rank; with unequal budgets, per unit of the mean, all scaled alike.
        next_rank: r + 1; None where no larger rank is allowed.
        factor: by which the budget buys it, inf where no amount does.
    """

    budget: str
    given: float
    ranks_per_unit: float
    next_rank: int | None
    factor: float

    @property
    def needed(self) -> float:
        """The budget that buys the next rank."""
        return self.given * self.factor


def prices(problem: Problem, plan: Plan) -> list[Price]:
    """Return the price of each budget that is a limit, for a plan at the largest common rank.

    Args:
        problem: the round.
        plan: its plan, with participants; a shared band is one shared by need if the plan has sub-bands.
    """
    rank = plan.common_rank
    assert rank
    is_joint = bool(np.any(np.isfinite(plan.bandwidth_hz)))
    members = subproblem(problem, np.flatnonzero(plan.participants))
    last = int(np.minimum(members.rank_cap, members.rank_ceiling).min())
    next_rank = rank + 1 if rank < last else None
    now = _real_rank(members, is_joint, rank, last)
    found = []
    for name, given, scaled in _budgets(members):
        more = _real_rank(scaled(1.0 + _STEP), is_joint, rank, last)
        factor = math.inf
        if next_rank is not None:
            blocked = members if is_joint else subproblem(members, np.flatnonzero(~feasible(members, next_rank)))
            # Those blocked may be the ones without this budget.
            of_blocked = {same: other for same, _, other in _budgets(blocked)}
            if name in of_blocked:
                factor = _least_factor(partial(_fits_with, of_blocked[name], is_joint, next_rank))
        found.append(Price(name, given, max(0.0, more - now) / (_STEP * given), next_rank, factor))
    return found


Scaled = Callable[[float], Problem]


def _budgets(problem: Problem) -> Iterator[tuple[str, float, Scaled]]:
    """Yield each finite budget's name, amount, and the problem with so many times as much of it."""
    latency_s, energy_j, band = problem.latency_budget_s, problem.energy_budget_j, problem.band
    if math.isfinite(latency_s):
        yield "latency_s", latency_s, lambda by: unchecked(problem, latency_budget_s=latency_s * by)
    if np.any(limited := np.isfinite(energy_j)):
        yield "energy_j", float(energy_j[limited].mean()), lambda by: unchecked(problem, energy_budget_j=energy_j * by)
    memory_bytes = problem.memory_budget_bytes
    if np.any(limited := np.isfinite(memory_bytes)):
        given_bytes = float(memory_bytes[limited].mean())
        yield "memory_bytes", given_bytes, lambda by: unchecked(problem, memory_budget_bytes=memory_bytes * by)
    if band is not None:
        yield "bandwidth_hz", band.total_hz, lambda by: _widened(problem, by)


def _widened(problem: Problem, by: float) -> Problem:
    """Return the problem with a wider band, at the rates of its equal shares."""
    assert problem.band is not None
    band = problem.band.widened(by)
    shares_hz = np.full(problem.num_clients, band.share_hz)
    grown = band.downlink_bps(shares_hz) / problem.band.downlink_bps(shares_hz / by)
    return unchecked(
        problem,
        band=band,
        uplink_bps=np.where(problem.uplink_bps > 0, band.uplink_bps(shares_hz), 0.0),
        downlink_bps=problem.downlink_bps * np.where(np.isfinite(grown), grown, 1.0),
    )


def _fits(problem: Problem, is_joint: bool, rank: float) -> bool:
    ranks = np.full(problem.num_clients, rank)
    if not is_joint:
        return bool(np.all(feasible(problem, ranks)))
    return fits_together(_heard(problem), ranks)


def _fits_with(scaled: Scaled, is_joint: bool, rank: int, by: float) -> bool:
    return _fits(scaled(by), is_joint, rank)


def _heard(problem: Problem) -> Problem:
    """Return the problem with a broadcast at the rate of the slowest, all of whom take part."""
    assert problem.band is not None
    if not problem.band.is_broadcast:
        return problem
    return unchecked(problem, downlink_bps=at_bands(problem, np.zeros(problem.num_clients)).downlink_bps)


def _real_rank(problem: Problem, is_joint: bool, low: float, high: float) -> float:
    """Return the largest real rank, between one that fits and the largest allowed."""
    if not is_joint:
        return min(high, float(relaxation(problem).min()))
    if _fits(problem, is_joint, high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high or high - low < 1e-10 * high:
            break
        low, high = (middle, high) if _fits(problem, is_joint, middle) else (low, middle)
    return low


def _least_factor(fits: Callable[[float], bool]) -> float:
    """Return the least factor >= 1 that fits, inf if none does."""
    low, high = 1.0, 2.0
    while not fits(high):
        if high > _MOST_FACTOR:
            return math.inf
        low, high = high, 2.0 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high or high - low < 1e-12 * high:
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
