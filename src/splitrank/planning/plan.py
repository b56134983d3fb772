"""A round's plan: the rank, who takes part, and each client's frequency with what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.problem import (
    UNITS,
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    Shortfalls,
    binding,
    compute_s,
    downlink_s,
    energy_j,
    frequency_range_hz,
    latency_s,
    shortfalls,
    uplink_s,
)
from splitrank.planning.solvers.bisection import bisection
from splitrank.planning.solvers.branch_and_bound import branch_and_bound
from splitrank.planning.solvers.exact import exact
from splitrank.planning.solvers.random_frequency import random_frequency

Method = Literal["exact", "bisection", "branch-and-bound", "random-frequency"]
FrequencyPolicy = Literal["least-energy", "least-latency"]

OPTIMAL_SOLVERS = {"exact": exact, "bisection": bisection, "branch-and-bound": branch_and_bound}


@dataclass(frozen=True)
class Plan:
    """Who trains at which rank and frequency this round. Arrays have shape (I,).

    Attributes:
        status: ``"optimal"``, ``"feasible"`` (a method that promises no optimum) or ``"infeasible"``.
        method: the solver.
        rank: common rank r*, 0 if infeasible.
        participants: clients that train this round.
        max_rank: r_i*, each client's own largest rank.
        frequency_hz: f [Hz]; this and all below NaN where the client does not take part.
        frequency_low_hz: lower end of the frequencies that keep to the budgets at r* [Hz].
        frequency_high_hz: upper end [Hz].
        compute_s: T_cmp [s].
        uplink_s: T_ul [s].
        downlink_s: T_dl [s].
        latency_s: T [s].
        energy_j: E [J].
        binding: what blocks ``max_rank`` + 1, for every client.
        shortfalls: what blocks each client that cannot take part, and by how much.
    """

    status: Literal["optimal", "feasible", "infeasible"]
    method: Method
    rank: int
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


def make_plan(
    problem: Problem,
    *,
    method: Method,
    frequency_policy: FrequencyPolicy,
    rank: int | None = None,
    sit_out: bool = False,
    frequency_hz: FloatArray | None = None,
) -> Plan:
    """Plan one round: the largest common rank and a frequency for every client.

    r* = min_i r_i* over the clients that take part;  f_i = f_lat(r*) or min(f_max, f_en(r*))

    Algorithm 1, lines (14) and (15), of Xie and Wen. They do not say which of the optimal frequencies to take, nor
    what happens to a client that can do no rank.

    Args:
        problem: the round.
        method: the solver.
        frequency_policy: ``"least-energy"`` takes the lowest frequency that is in time, ``"least-latency"`` the
            highest that is within the energy budget; of no effect where frequencies are given.
        rank: fixes the rank, so that only frequencies are planned; None to plan it.
        sit_out: whether a client that cannot do rank 1, or the fixed rank, sits the round out; otherwise it makes
            the plan infeasible.
        frequency_hz: drawn frequencies [Hz], shape (I,), for ``"random-frequency"`` and no other method.

    Returns:
        the plan; an infeasible one has rank 0 and no participants.

    Raises:
        ValueError: frequencies given to a solver that plans them, or not given to the one that needs them.
    """
    if (frequency_hz is not None) != (method == "random-frequency"):
        raise ValueError(f"frequency_hz must be given for 'random-frequency' and only then, method is {method!r}")
    max_rank = OPTIMAL_SOLVERS[method](problem) if frequency_hz is None else random_frequency(problem, frequency_hz)

    wanted_rank = rank or 1
    able = max_rank >= wanted_rank
    participants = able if sit_out or np.all(able) else np.zeros_like(able)
    planned = bool(np.any(participants))
    common_rank = rank or int(np.min(max_rank, where=participants, initial=np.max(problem.rank_cap)))

    def taking_part(values: FloatArray) -> FloatArray:
        return np.where(participants, values, np.nan)

    low_hz, high_hz = frequency_range_hz(problem, common_rank)
    planned_hz = low_hz if frequency_policy == "least-energy" else high_hz
    chosen_hz = taking_part(planned_hz if frequency_hz is None else frequency_hz)
    return Plan(
        status="infeasible" if not planned else "optimal" if method in OPTIMAL_SOLVERS else "feasible",
        method=method,
        rank=common_rank if planned else 0,
        participants=participants,
        max_rank=max_rank,
        frequency_hz=chosen_hz,
        frequency_low_hz=taking_part(low_hz),
        frequency_high_hz=taking_part(high_hz),
        compute_s=compute_s(problem, common_rank, chosen_hz),
        uplink_s=taking_part(uplink_s(problem, common_rank)),
        downlink_s=taking_part(downlink_s(problem, common_rank)),
        latency_s=latency_s(problem, common_rank, chosen_hz),
        energy_j=energy_j(problem, common_rank, chosen_hz),
        binding=binding(problem, max_rank, frequency_hz),
        shortfalls=shortfalls(problem, wanted_rank, able, frequency_hz),
    )


def plan_of_own_ranks(problem: Problem, max_rank: IntArray, *, rank: int | None = None) -> Plan:
    """The plan where every client has solved its own problem and told nothing but its largest rank.

    r* = min_i r_i* over the clients that can take part: the closing remark of section IV of Xie and Wen, that P1 falls
    apart into one problem per device. Frequencies, and what they cost, stay with the clients: NaN here, and "private"
    for what binds.

    Args:
        problem: of which only the links are read.
        max_rank: r_i* as the clients told, shape (I,); 0 for one that can do none, or did not answer.
        rank: fixes the rank; None for the largest common one.
    """
    able = max_rank >= (rank or 1)
    planned = bool(np.any(able))
    common_rank = rank or int(np.min(max_rank, where=able, initial=np.max(problem.rank_cap)))
    private = np.full(problem.num_clients, np.nan)
    nobody = np.ones_like(able)
    return Plan(
        status="optimal" if planned else "infeasible",
        method="exact",
        rank=common_rank if planned else 0,
        participants=able,
        max_rank=max_rank,
        frequency_hz=private,
        frequency_low_hz=private,
        frequency_high_hz=private,
        compute_s=private,
        uplink_s=np.where(able, uplink_s(problem, common_rank), np.nan),
        downlink_s=np.where(able, downlink_s(problem, common_rank), np.nan),
        latency_s=private,
        energy_j=private,
        binding=np.full(problem.num_clients, "private"),
        shortfalls=shortfalls(problem, common_rank, nobody),
    )


def plan_json(plan: Plan, problem: Problem) -> dict[str, Any]:
    """The plan in plain Python types, as ``splitrank plan --json`` prints it.

    A number that is not finite becomes None. A client that cannot take part has a ``"shortfall"``.
    """

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    clients = []
    for i in range(problem.num_clients):
        client: dict[str, Any] = {
            "client": i,
            "rank": plan.rank if plan.participants[i] else 0,
            "max_rank": int(plan.max_rank[i]),
            "frequency_hz": number(plan.frequency_hz[i]),
            "frequency_range_hz": [number(plan.frequency_low_hz[i]), number(plan.frequency_high_hz[i])],
            "uplink_bps": number(problem.uplink_bps[i]),
            "downlink_bps": number(problem.downlink_bps[i]),
            "compute_s": number(plan.compute_s[i]),
            "uplink_s": number(plan.uplink_s[i]),
            "downlink_s": number(plan.downlink_s[i]),
            "latency_s": number(plan.latency_s[i]),
            "energy_j": number(plan.energy_j[i]),
            "binding": str(plan.binding[i]),
        }
        if problem.overhead_s[i]:
            client["overhead_s"] = float(problem.overhead_s[i])
        constraint = str(plan.shortfalls.constraint[i])
        if constraint:
            client["shortfall"] = {
                "constraint": constraint,
                "needed": number(plan.shortfalls.needed[i]),
                "available": number(plan.shortfalls.available[i]),
                "unit": UNITS[constraint],
            }
        clients.append(client)
    return {"status": plan.status, "method": plan.method, "rank": plan.rank, "clients": clients}
