"""Branch and bound as in section 2 of Xie and Wen: relax the rank, then branch on its floor and ceiling."""

from __future__ import annotations

import numpy as np

from splitrank.planning.problem import (
    FloatArray,
    IntArray,
    Problem,
    compute_slack,
    downlink_s,
    feasible,
    memory_rank,
    on_air_s,
    round_to_feasible,
    uplink_s,
)


def branch_and_bound(problem: Problem) -> IntArray:
    """Largest feasible rank of every client, by branching on the continuous relaxation.

    x* = max{x real in [1, cap] : x fits};  branches r <= floor(x*) and r >= ceil(x*)

    Section 2, equation (21). With one integer variable per client the tree has one level: the relaxation of the
    ceiling's branch is infeasible and that of the floor's branch ends at the floor, an integer. Both are checked
    against the kernel, as x* is rounded. The paper calls the problem a mixed-integer linear one; it is convex (see
    `relaxation`), not linear.

    Args:
        problem: the round.

    Returns:
        r*, shape (I,), in 0..cap.
    """
    return round_to_feasible(relaxation(problem), problem.rank_cap, lambda rank: feasible(problem, rank))


def relaxation(problem: Problem) -> FloatArray:
    """Optimum of P1 over real ranks r >= 1, for every client.

    largest x in [1, cap] with C(x) <= f_max·S(x), memory(x) <= M_0 and g(x) = Ω·C(x)³/S(x)² - W(x) <= 0

    The first two bounds are linear. In the third, C³/S² is convex for C, S > 0 (a power cone) and W is linear, so
    Newton's method from the linear bound, where g > 0, falls to the root without passing it. Without a time limit the
    first bound is the cap, and g is -W.

    Args:
        problem: the round.

    Returns:
        x*, shape (I,), 0 where rank 1 does not fit.
    """
    work = problem.workload
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        uplink_slope_s = on_air_s(work.uplink_bits.per_rank, problem.uplink_bps)
        airtime_slope_s = uplink_slope_s + on_air_s(work.downlink_bits.per_rank, problem.downlink_bps)
        airtime_s = uplink_s(problem, 1) + downlink_s(problem, 1) + problem.overhead_s
        spare_s = problem.deadline_s - airtime_s - work.cycles(1) / problem.max_frequency_hz
        rank = 1 + spare_s / (airtime_slope_s + work.cycles.per_rank / problem.max_frequency_hz)
        rank = np.where(feasible(problem, 1), np.fmin(np.fmin(rank, memory_rank(problem)), problem.rank_cap), 0.0)
        while True:
            cycles = work.cycles(rank)
            spare_s, spare_j = compute_slack(problem, rank)
            slowest_hz = np.where(cycles == 0, 0.0, cycles / spare_s)
            excess_j = problem.capacitance * cycles * slowest_hz**2 - spare_j
            slope_j = (
                problem.capacitance * slowest_hz**2 * (3 * work.cycles.per_rank)
                + 2 * problem.capacitance * slowest_hz**3 * airtime_slope_s
                + problem.uplink_power_w * uplink_slope_s
                + problem.joules_per_cycle * work.cycles.per_rank
            )
            lower = np.maximum(rank - excess_j / slope_j, 1.0)
            falls = (rank > 1) & (excess_j > 0) & (rank - lower > 1e-9 * rank)
            if not np.any(falls):
                return rank
            rank = np.where(falls, lower, rank)
