"""Compute the numbers of a plan's picture: each client's feasible region, and the rank over the two budgets.

Every number comes from the planner's own kernels: `frequency_range_hz` and `feasible` at real ranks for the regions,
`plan_round` at other budgets for the curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from splitrank.config import Config
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.federation.sizes import fixed_rank
from splitrank.planning.bandwidth import at_bands
from splitrank.planning.plan import Plan
from splitrank.planning.problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    feasible,
    frequency_range_hz,
    subproblem,
)
from splitrank.planning.solvers.random_frequency import draw_frequency_hz

MAX_REGIONS = 6
"""Clients that get a picture of their own."""

MAX_LINES = 200
"""Clients that get a line of their own over the budgets."""

BUDGET_FACTORS: FloatArray = 30.0 ** np.linspace(-1.0, 1.0, 241)
"""Budgets on a log grid round the given one, which is the middle one."""

_POINTS = 400
_NO_LIMIT = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Region:
    """The ranks and frequencies at which one client keeps to its budgets. Arrays have shape (R,).

    Attributes:
        client: index i.
        rank: real ranks from 1 on, every integer among them.
        latency_hz: f_lat, the slowest that is in time [Hz]; infinite where the airtime alone is too long.
        energy_hz: f_en, the fastest within the energy [Hz]; 0 where none is left for computing.
        allowed: True where some frequency up to f_max lies between them, and the rank is within its cap.
        max_frequency_hz: f_max [Hz].
        drawn_hz: the frequency drawn instead of planned [Hz], NaN where none could be drawn; None if planned.
        shown_rank: rank up to which the region is worth showing.
    """

    client: int
    rank: FloatArray
    latency_hz: FloatArray
    energy_hz: FloatArray
    allowed: BoolArray
    max_frequency_hz: float
    drawn_hz: float | None
    shown_rank: int

    @property
    def highest_hz(self) -> FloatArray:
        """Return min(f_max, f_en) [Hz], the upper edge where the rank is allowed, shape (R,)."""
        return np.minimum(self.energy_hz, self.max_frequency_hz)


@dataclass(frozen=True)
class BudgetCurve:
    """Ranks over one budget, all else as given.

    Attributes:
        budget: T0 [s], or the mean of E_0 over the clients [J], shape (B,).
        given: the given one, infinite for no limit.
        clients: those with a line of their own, shape (L,).
        max_rank: their r_i*, shape (B, L).
        common_rank: min_i r_i* over all clients, 0 where one can do none, shape (B,).
    """

    budget: FloatArray
    given: float
    clients: IntArray
    max_rank: IntArray
    common_rank: IntArray

    @property
    def middle(self) -> float:
        """Return the given budget, or the amount that the plan takes of it where there is no limit."""
        return float(self.budget[len(self.budget) // 2])

    def eventful(self) -> tuple[float, float]:
        """Return the budgets between which ranks change, and a factor 4 about the middle one at least."""
        ranks = np.column_stack([self.max_rank, self.common_rank])
        changes = np.flatnonzero(np.any(np.diff(ranks, axis=0) != 0, axis=1))
        first, last = (changes[0], changes[-1] + 1) if changes.size else (len(ranks) // 2, len(ranks) // 2)
        low = min(float(self.budget[first]) / 1.1, self.middle / 4)
        high = max(float(self.budget[last]) * 1.1, self.middle * 4)
        return max(low, float(self.budget[0])), min(high, float(self.budget[-1]))


@dataclass(frozen=True)
class PlanCurves:
    """All numbers of the picture of a round's plan.

    Attributes:
        round: the round whose channels were drawn.
        plan: the plan for all clients.
        problem: the one that was planned.
        fixed_rank: ``adapter.rank``, None if planned.
        regions: one for each client; of many those with the smallest max_rank, the smallest first.
        over_latency: ranks over T0.
        over_energy: ranks over E_0, all clients' scaled together.
    """

    round: int
    plan: Plan
    problem: Problem
    fixed_rank: int | None
    regions: tuple[Region, ...]
    over_latency: BudgetCurve
    over_energy: BudgetCurve


def plan_curves(config: Config, round: int) -> PlanCurves:
    """Plan a round as ``splitrank plan`` does, and compute everything round the plan that its picture shows."""
    problem = planned_problem(config, round, require_all=True)
    plan = plan_round(config, problem, round, require_all=True)
    with np.errstate(over="ignore"):
        longest_s = np.array(np.nanmax(plan.latency_s, initial=0.0))
        middle_s = float(_or_spent(np.array(problem.latency_budget_s), longest_s))
        middle_j = _or_spent(problem.energy_budget_j, plan.energy_j)
        latencies_s = np.clip(middle_s * BUDGET_FACTORS, np.finfo(np.float64).tiny, _NO_LIMIT)
        energies_j = (np.minimum(middle_j * factor, _NO_LIMIT) for factor in BUDGET_FACTORS)
        mean_energies_j = np.minimum(float(np.mean(middle_j)) * BUDGET_FACTORS, _NO_LIMIT)
    lines = _smallest(plan.max_rank, MAX_LINES)
    return PlanCurves(
        round=round,
        plan=plan,
        problem=problem,
        fixed_rank=fixed_rank(config),
        regions=_regions(config, problem, plan, round),
        over_latency=BudgetCurve(
            latencies_s,
            problem.latency_budget_s,
            lines,
            *_ranks(config, (replace(problem, latency_budget_s=float(t)) for t in latencies_s), round, lines),
        ),
        over_energy=BudgetCurve(
            mean_energies_j,
            float(np.mean(problem.energy_budget_j)),
            lines,
            *_ranks(config, (replace(problem, energy_budget_j=e) for e in energies_j), round, lines),
        ),
    )


def _or_spent(budget: FloatArray, spent: FloatArray) -> FloatArray:
    """Return the plan's spending where the budget is infinite, 1 where it spends nothing."""
    return np.where(np.isfinite(budget), budget, np.where(spent > 0, spent, 1.0))


def _smallest(max_rank: IntArray, most: int) -> IntArray:
    """Return all clients in their order, or of too many those with the smallest max_rank, the smallest first."""
    return np.arange(len(max_rank)) if len(max_rank) <= most else np.argsort(max_rank, kind="stable")[:most]


def _ranks(config: Config, problems: Iterable[Problem], round: int, clients: IntArray) -> tuple[IntArray, IntArray]:
    plans = [plan_round(config, problem, round, require_all=True) for problem in problems]
    own = np.array([plan.max_rank[clients] for plan in plans])
    asked = [plan.max_rank if plan.chosen is None else plan.max_rank[plan.chosen] for plan in plans]
    return own, np.array([max_rank.min() if len(max_rank) else 0 for max_rank in asked])


def _regions(config: Config, problem: Problem, plan: Plan, round: int) -> tuple[Region, ...]:
    clients = _smallest(plan.max_rank, MAX_REGIONS)
    drawn_hz = None
    if config.planner.method == "random-frequency":
        drawn_hz = draw_frequency_hz(problem, config.run.seed, round, config.planner.random_range)
    shown = subproblem(at_bands(problem, plan.bandwidth_hz), clients)
    own_ranks = plan.max_rank[clients]
    # A client that can do nothing is shown over the same ranks as the best one.
    chosen = fixed_rank(config) or plan.largest_rank
    ends = [_shown_rank(int(own or own_ranks.max()), chosen) for own in own_ranks]
    rank = _real_ranks(max(ends))
    at_rank = rank[:, np.newaxis]
    # Without a top speed the upper end of the range is f_en.
    latency_hz, energy_hz = frequency_range_hz(replace(shown, max_frequency_hz=np.array(_NO_LIMIT)), at_rank)
    allowed = feasible(shown, at_rank) & (at_rank <= shown.rank_cap)
    return tuple(
        Region(
            client=int(client),
            rank=rank,
            latency_hz=latency_hz[:, column],
            energy_hz=energy_hz[:, column],
            allowed=allowed[:, column],
            max_frequency_hz=float(shown.max_frequency_hz[column]),
            drawn_hz=None if drawn_hz is None else float(drawn_hz[client]),
            shown_rank=ends[column],
        )
        for column, client in enumerate(clients)
    )


def _shown_rank(max_rank: int, chosen_rank: int) -> int:
    """Return the end of the axis: some way beyond the client's own rank, and beyond the chosen or fixed one."""
    return max(8, math.ceil(1.35 * max_rank), math.ceil(1.15 * chosen_rank))


def _real_ranks(end: int) -> FloatArray:
    """Return 1..end with so many points between two integers that curves look smooth."""
    between = math.ceil(_POINTS / (end - 1))
    return np.linspace(1.0, end, between * (end - 1) + 1)
