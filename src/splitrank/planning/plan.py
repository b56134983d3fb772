"""A round's plan: who takes part, and each client's rank and frequency with what they cost."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.bandwidth import (
    Allocation,
    Shares,
    allocate,
    at_bands,
    common_rank_shares,
    least_time_shares,
)
from splitrank.planning.bandwidth_energy import least_energy_shares
from splitrank.planning.bandwidth_per_client import per_client_shares
from splitrank.planning.limits import UNITS, Shortfalls, band_shortfalls, binding, shortfalls
from splitrank.planning.participation import WorthIt, worth_at_equal_shares, worth_on_shared_band
from splitrank.planning.problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    compute_s,
    downlink_s,
    energy_j,
    frequency_range_hz,
    latency_s,
    uplink_s,
)
from splitrank.planning.solvers.bisection import bisection
from splitrank.planning.solvers.branch_and_bound import branch_and_bound
from splitrank.planning.solvers.exact import exact
from splitrank.planning.solvers.random_frequency import random_frequency
from splitrank.records import ClientPlan, Shortfall

Method = Literal["exact", "bisection", "branch-and-bound", "random-frequency"]
FrequencyPolicy = Literal["least-energy", "least-latency"]
RankPolicy = Literal["common", "per-client"]
Bandwidth = Literal["equal", "joint"]
Objective = Literal["largest-rank", "least-energy", "least-latency"]
Participation = Literal["all", "worth"]

_CHOICES = {
    "method": Method,
    "frequency_policy": FrequencyPolicy,
    "rank_policy": RankPolicy,
    "bandwidth": Bandwidth,
    "objective": Objective,
    "participation": Participation,
}

OPTIMAL_SOLVERS = {"exact": exact, "bisection": bisection, "branch-and-bound": branch_and_bound}


@dataclass(frozen=True)
class Plan:
    """A round's plan: each client's rank and frequency, and what they cost. Arrays have shape (I,).

    `make_plan` returns it; see there for an example, and `plan_json` for the same in plain Python types.

    Attributes:
        status: ``"optimal"``, ``"feasible"`` (a method that promises no optimum) or ``"infeasible"``.
        method: the solver.
        rank: at which each client trains, int64, 0 for one that does not take part.
        participants: clients that train this round.
        max_rank: r_i*, each client's own largest rank.
        frequency_hz: f [Hz]; this and all below NaN where the client does not take part.
        frequency_low_hz: lower end of the frequencies that keep to the budgets at its rank [Hz].
        frequency_high_hz: upper end [Hz].
        compute_s: T_cmp [s].
        uplink_s: T_ul [s].
        downlink_s: T_dl [s].
        latency_s: T [s].
        energy_j: E [J].
        binding: what blocks ``max_rank`` + 1, for every client: ``"rank-cap"``, ``"memory"``, ``"latency"``
            (airtime alone), ``"energy"`` or ``"frequency"`` (the processor at full speed).
        shortfalls: what blocks each client that cannot take part, and by how much.
        chosen: clients that were asked to take part; None where all are.
        reasons: what decided for or against each client; empty where all are asked.
        bandwidth_hz: sub-band [Hz] where the band is shared together with the rank; NaN where it is not, and where the
            client does not take part. Rates and ``max_rank`` are those of the sub-band.
        gap: for a status of ``"feasible"``, by which share of a bound the utility, Σ log(1 + r) or Σ n·log(1 + r), may
            be below the best; 0 for an optimum, and where there is no bound.
    """

    status: Literal["optimal", "feasible", "infeasible"]
    method: Method
    rank: IntArray
    participants: BoolArray
    max_rank: IntArray
    frequency_hz: FloatArray
    frequency_low_hz: FloatArray
    frequency_high_hz: FloatArray
    compute_s: FloatArray
    uplink_s: FloatArray
    downlink_s: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    binding: NDArray[np.str_]
    shortfalls: Shortfalls
    chosen: BoolArray | None = None
    reasons: tuple[str, ...] = ()
    bandwidth_hz: FloatArray = field(default_factory=lambda: np.full((), np.nan))
    gap: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth_hz", np.broadcast_to(self.bandwidth_hz, self.rank.shape))

    @property
    def largest_rank(self) -> int:
        """The largest rank at which anybody trains, 0 if nobody does."""
        return int(self.rank.max())

    @property
    def common_rank(self) -> int | None:
        """The rank of all participants, 0 if there are none, None where their ranks differ."""
        ranks = np.unique(self.rank[self.participants])
        return None if len(ranks) > 1 else self.largest_rank


def _broken_choices(problem: object, chosen: Mapping[str, str], told: Mapping[str, Any]) -> list[str]:
    """Return sentences about arguments of `make_plan` that are unknown or do not go together."""
    if not isinstance(problem, Problem):
        return [f"problem must be a Problem, got {reprlib.repr(problem)}"]
    problems = [
        f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {chosen[name]!r}"
        for name, choices in _CHOICES.items()
        if chosen[name] not in get_args(choices)
    ]
    problems += [
        f"{name} must have shape ({problem.num_clients},), a number for each client, got shape {np.shape(value)}"
        for name, value in told.items()
        if value is not None and np.shape(value) != (problem.num_clients,)
    ]
    is_drawn, is_private = told["frequency_hz"] is not None, told["told_max_rank"] is not None
    if is_drawn != (chosen["method"] == "random-frequency"):
        problems.append(
            f"frequency_hz must be given for method 'random-frequency' and only then, got {chosen['method']!r}; "
            "splitrank.planning.solvers.random_frequency.draw_frequency_hz draws it"
        )
    goes_for_rank = chosen["objective"] == "largest-rank"
    key = "frequency_policy" if goes_for_rank else "objective"
    if not is_drawn and not is_private and chosen[key] == "least-energy" and math.isinf(problem.latency_budget_s):
        problems.append(f"{key} must be 'least-latency' where latency_budget_s is infinite, got 'least-energy'")
    if not goes_for_rank and (is_drawn or chosen["rank_policy"] == "per-client"):
        what = "frequency_hz is drawn" if is_drawn else "rank_policy is 'per-client'"
        problems.append(f"objective must be 'largest-rank' where {what}, got {chosen['objective']!r}")
    if chosen["participation"] == "worth":
        if not goes_for_rank or chosen["rank_policy"] == "per-client":
            what = "ranks are the clients' own" if goes_for_rank else f"objective is {chosen['objective']!r}"
            problems.append(f"participation must be 'all' where {what}, and nobody holds others down, got 'worth'")
        if chosen["bandwidth"] == "joint" and problem.band is not None and problem.band.is_broadcast:
            problems.append("participation must be 'all' for a broadcast on a band that is shared, got 'worth'")
    if chosen["bandwidth"] == "joint":
        if problem.band is None:
            problems.append("bandwidth must be 'equal' for a problem without a band, got 'joint'; give it Problem.band")
        if is_drawn or is_private:
            what = "frequency_hz is drawn" if is_drawn else "told_max_rank stays with the clients"
            problems.append(f"bandwidth must be 'equal' where {what}, got 'joint'")
    return problems


def make_plan(
    problem: Problem,
    *,
    method: Method = "exact",
    frequency_policy: FrequencyPolicy = "least-energy",
    rank_policy: RankPolicy = "common",
    bandwidth: Bandwidth = "equal",
    objective: Objective = "largest-rank",
    participation: Participation = "all",
    require_all: bool = True,
    frequency_hz: FloatArray | None = None,
    told_max_rank: IntArray | None = None,
    chosen: BoolArray | None = None,
    weights: FloatArray | None = None,
    min_clients: int = 1,
) -> Plan:
    """Plan one round: the largest rank, common or each client's own, and a frequency for every client.

    r = min_i min(r_i*, ceiling_i) over the clients that take part, or r_i = min(r_i*, ceiling_i);
    f_i = f_lat(r_i) or min(f_max, f_en(r_i))

    Algorithm 1, lines (14) and (15), of Xie and Wen. They do not say which of the optimal frequencies to take, nor
    what happens to a client that can do no rank. A client takes part if r_i* reaches its rank floor; floor and ceiling
    of the problem are both the fixed rank where there is one, so that only frequencies are planned.

    Two clients that have 60 s and 20 J for 1e9 cycles, and 1 Mbit up and down, per rank; the second's uplink is slow:

    >>> from splitrank import Affine, Problem, Workload, make_plan
    >>> bits = Affine(0, 1e6)
    >>> problem = Problem(
    ...     workload=Workload(cycles=Affine(0, 1e9), uplink_bits=bits, downlink_bits=bits),
    ...     uplink_bps=[2e6, 1e5],
    ...     downlink_bps=2e6,
    ...     uplink_power_w=0.2,
    ...     capacitance=1e-27,
    ...     max_frequency_hz=1e9,
    ...     energy_budget_j=20.0,
    ...     latency_budget_s=60.0,
    ... )
    >>> plan = make_plan(problem)
    >>> plan.status, plan.common_rank
    ('optimal', 5)
    >>> plan.max_rank.tolist(), plan.binding.tolist()
    ([26, 5], ['energy', 'latency'])
    >>> (plan.frequency_hz / 1e9).round(3).tolist()  # in GHz
    [0.091, 0.667]
    >>> make_plan(problem, rank_policy="per-client").rank.tolist()
    [26, 5]

    Args:
        problem: the round; of it only links, floor and ceiling are read where max_ranks are told.
        method: ``"exact"``, ``"bisection"`` and ``"branch-and-bound"`` find the same optimum; ``"random-frequency"``
            finds the largest rank at frequencies that were drawn.
        frequency_policy: ``"least-energy"`` takes the lowest frequency that is in time, ``"least-latency"`` the
            highest that is within the energy budget; of no effect where frequencies are given or stay private, or the
            objective is another than the largest rank.
        rank_policy: ``"common"`` gives all the rank that the weakest can do, ``"per-client"`` each its own.
        bandwidth: ``"equal"`` takes the rates of the problem, ``"joint"`` shares its band together with the rank (see
            `bandwidth`), or with a rank for each client (see `bandwidth_per_client`).
        objective: ``"largest-rank"``; or at the rank floors ``"least-energy"``, what all spend together, or
            ``"least-latency"``, the time of the slowest, each of frequencies and of a shared band.
        participation: ``"all"``, or ``"worth"``: those for whom Σ n_i·log(1 + r) is largest, see `participation`.
            Nobody is then required.
        require_all: whether a client that cannot do its rank floor makes the plan infeasible; otherwise it sits the
            round out.
        frequency_hz: drawn frequencies [Hz], shape (I,), for ``"random-frequency"`` and no other method.
        told_max_rank: r_i* where every client has solved its own problem and told nothing else, int64, shape (I,); 0
            for one that can do none, or did not answer. That P1 falls apart into one problem per device is the closing
            remark of section IV of Xie and Wen. Frequencies, and what they cost, then stay with the clients: NaN here,
            and "private" for what binds.
        chosen: who is asked to take part, bool, shape (I,); everybody if None. Nobody else's rank counts for the common
            one, nor can it make the plan infeasible.
        weights: n_i, what each client counts where participation must be worth it, > 0, shape (I,); None if all count
            the same.
        min_clients: how many must at least take part there, >= 1.

    Returns:
        the plan; an infeasible one has no participants, all of whose ranks are 0.

    Raises:
        ValueError: one line for each rule that is broken: an unknown method or policy; frequencies given to a solver
            that plans them, or not given to the one that needs them; or the lowest frequency that is in time, where
            there is no time limit.
    """
    is_private = told_max_rank is not None
    choices = {
        "method": method,
        "frequency_policy": frequency_policy,
        "rank_policy": rank_policy,
        "bandwidth": bandwidth,
        "objective": objective,
        "participation": participation,
    }
    told = {"frequency_hz": frequency_hz, "told_max_rank": told_max_rank, "chosen": chosen, "weights": weights}
    problems = _broken_choices(problem, choices, told)
    if problems:
        raise ValueError("\n".join(problems))
    if objective != "largest-rank":
        frequency_policy, problem = objective, replace(problem, rank_ceiling=problem.rank_floor)
    everybody = np.ones(problem.num_clients, np.bool_)
    asked, shared, gap = everybody if chosen is None else chosen, None, 0.0
    if participation == "worth":
        most = None if bandwidth == "joint" else _max_rank(problem, method, frequency_hz, told_max_rank)
        worth = _worth_it(problem, asked, most, weights, min_clients)
        asked, gap, require_all = worth.members, worth.gap, False
        chosen = chosen if asked.all() else asked
    if bandwidth == "joint":
        shares = per_client_shares if rank_policy == "per-client" else _SHARES[objective]
        whole_band, shared = problem, allocate(problem, asked, shares, require_all=require_all)
        problem = at_bands(problem, shared.bandwidth_hz)
    max_rank = _max_rank(problem, method, frequency_hz, told_max_rank)
    able = max_rank >= problem.rank_floor
    if shared is not None:
        participants, rank = shared.participants, shared.rank
    else:
        participants = np.zeros_like(able) if require_all and not np.all(able[asked]) else able & asked
        allowed = np.minimum(max_rank, problem.rank_ceiling)
        if rank_policy == "common":
            allowed = np.broadcast_to(np.min(allowed, where=participants, initial=np.max(allowed)), allowed.shape)
        rank = np.where(participants, allowed, 0)
    planned = bool(np.any(participants))
    at_rank = np.maximum(rank, 1)  # of clients that do not take part nothing is shown

    def taking_part(values: FloatArray) -> FloatArray:
        return np.where(participants, values, np.nan)

    private = np.full(problem.num_clients, np.nan)
    low_hz, high_hz = (private, private) if is_private else frequency_range_hz(problem, at_rank)
    planned_hz = low_hz if frequency_policy == "least-energy" else high_hz
    chosen_hz = taking_part(planned_hz if frequency_hz is None else frequency_hz)
    lacking = shortfalls(problem, problem.rank_floor, everybody if is_private else able, frequency_hz)
    if shared is not None:
        lacking = _lacking_band(lacking, whole_band, shared)
    is_optimal = method in OPTIMAL_SOLVERS and gap == 0 and (shared is None or shared.is_optimal)
    return Plan(
        status="infeasible" if not planned else "optimal" if is_optimal else "feasible",
        method=method,
        rank=rank,
        participants=participants,
        max_rank=max_rank,
        frequency_hz=chosen_hz,
        frequency_low_hz=taking_part(low_hz),
        frequency_high_hz=taking_part(high_hz),
        compute_s=compute_s(problem, at_rank, chosen_hz),
        uplink_s=taking_part(uplink_s(problem, at_rank)),
        downlink_s=taking_part(downlink_s(problem, at_rank)),
        latency_s=latency_s(problem, at_rank, chosen_hz),
        energy_j=energy_j(problem, at_rank, chosen_hz),
        binding=np.full(problem.num_clients, "private") if is_private else binding(problem, max_rank, frequency_hz),
        shortfalls=lacking,
        chosen=chosen,
        bandwidth_hz=np.full((), np.nan) if shared is None else shared.bandwidth_hz,
        gap=gap if shared is None else max(gap, shared.gap),
    )


def _max_rank(
    problem: Problem, method: Method, frequency_hz: FloatArray | None, told_max_rank: IntArray | None
) -> IntArray:
    if told_max_rank is not None:
        return told_max_rank
    return OPTIMAL_SOLVERS[method](problem) if frequency_hz is None else random_frequency(problem, frequency_hz)


def _worth_it(
    problem: Problem, asked: BoolArray, max_rank: IntArray | None, weights: FloatArray | None, min_clients: int
) -> WorthIt:
    """Return whose participation is worth it, on a band shared by need where no largest ranks are given."""
    weights = np.ones(problem.num_clients) if weights is None else weights
    if max_rank is None:
        return worth_on_shared_band(problem, asked, weights, min_clients)
    able = asked & (max_rank >= problem.rank_floor)
    return worth_at_equal_shares(able, np.minimum(max_rank, problem.rank_ceiling), weights, min_clients)


_SHARES: Mapping[Objective, Shares] = {
    "largest-rank": common_rank_shares,
    "least-energy": least_energy_shares,
    "least-latency": least_time_shares,
}


def _lacking_band(found: Shortfalls, problem: Problem, shared: Allocation) -> Shortfalls:
    """Return shortfalls where clients share a band: nobody that has a sub-band lacks anything."""
    band, least_hz = problem.band, np.where(shared.participants, np.nan, shared.least_hz)
    assert band is not None
    if not np.any(least_hz > band.share_hz):
        return found
    on_whole_band = at_bands(problem, np.full(problem.num_clients, band.total_hz))
    beyond = shortfalls(on_whole_band, problem.rank_floor, ~np.isinf(least_hz))
    return band_shortfalls(found, beyond, least_hz, band.share_hz)


def client_plans(plan: Plan, problem: Problem) -> list[ClientPlan]:
    """Return every client's part of a plan in plain Python types; a number that is not finite becomes None."""
    problem = at_bands(problem, plan.bandwidth_hz)

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return [
        ClientPlan(
            client=i,
            rank=int(plan.rank[i]),
            max_rank=int(plan.max_rank[i]),
            frequency_hz=number(plan.frequency_hz[i]),
            frequency_range_hz=[number(plan.frequency_low_hz[i]), number(plan.frequency_high_hz[i])],
            uplink_bps=number(problem.uplink_bps[i]),
            downlink_bps=number(problem.downlink_bps[i]),
            compute_s=number(plan.compute_s[i]),
            uplink_s=number(plan.uplink_s[i]),
            downlink_s=number(plan.downlink_s[i]),
            latency_s=number(plan.latency_s[i]),
            energy_j=number(plan.energy_j[i]),
            binding=str(plan.binding[i]),
            overhead_s=float(problem.overhead_s[i]) or None,
            shortfall=_shortfall(plan.shortfalls, i),
            chosen=None if plan.chosen is None else bool(plan.chosen[i]),
            chosen_by=plan.reasons[i] or None if plan.reasons else None,
            bandwidth_hz=number(plan.bandwidth_hz[i]),
        )
        for i in range(problem.num_clients)
    ]


def _shortfall(shortfalls: Shortfalls, i: int) -> Shortfall | None:
    if not (constraint := str(shortfalls.constraint[i])):
        return None
    needed, available = float(shortfalls.needed[i]), float(shortfalls.available[i])
    return Shortfall(
        constraint,
        needed if math.isfinite(needed) else None,
        available if math.isfinite(available) else None,
        UNITS[constraint],
    )


def plan_json(plan: Plan, problem: Problem) -> dict[str, Any]:
    """Return the plan in plain Python types, as ``splitrank plan --json`` prints it.

    The common rank is None where ranks differ. A client that cannot take part has a ``"shortfall"``.
    """
    clients = [client.to_json() for client in client_plans(plan, problem)]
    gap = {"gap": plan.gap} if plan.gap else {}
    return {"status": plan.status, "method": plan.method, "rank": plan.common_rank, "clients": clients, **gap}
