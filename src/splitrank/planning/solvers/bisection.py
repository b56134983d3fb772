"""Algorithm 1 of Xie and Wen, corrected: bisection over real ranks, each client by itself."""

from __future__ import annotations

import numpy as np

from splitrank.planning.problem import IntArray, Problem, downlink_s, feasible, round_to_feasible, uplink_s


def bisection(problem: Problem) -> IntArray:
    """Largest feasible rank of every client, by halving a bracket of real ranks.

    [1, min(cap, r_rig) + 1),  r_rig = (T0 - T_0) / T_1,  where rank r takes T_0 + T_1·r at f_max

    Algorithm 1, lines (2) to (12), with equation (22) as printed and these departures:

    * equation (23) subtracts times from T0 and calls the rest a rank. The rank at which full speed just meets T0 is
      meant; in the paper's workload r_rig = (T0 + K/f_max) / (2K/f_max + airtime per rank), K = |D|·Σdk. One more
      is infeasible, which makes a bracket;
    * the printed algorithm returns the upper end, which is infeasible almost always. Its floor may be one too high
      and the floor of the lower end one too low, as the bracket is left one rank wide. Here the floor of the lower
      end is taken and r, then r + 1, checked;
    * a client that cannot do rank 1 gets 0; the printed one never asks.

    No line reads another client's numbers: called with one client's problem, it is what that client runs.

    Args:
        problem: the round.

    Returns:
        r*, shape (I,), in 0..cap.
    """
    work = problem.workload
    with np.errstate(invalid="ignore", divide="ignore"):
        time_at_0_s = work.cycles(0) / problem.max_frequency_hz + uplink_s(problem, 0) + downlink_s(problem, 0)
        time_at_1_s = work.cycles(1) / problem.max_frequency_hz + uplink_s(problem, 1) + downlink_s(problem, 1)
        latency_bound = (problem.deadline_s - problem.overhead_s - time_at_0_s) / (time_at_1_s - time_at_0_s)
    low = np.where(feasible(problem, 1), 1.0, 0.0)
    high = np.where(low > 0, np.fmin(latency_bound, problem.rank_cap) + 1, 1.0)

    while np.any(high - low > 1):
        middle = (low + high) / 2
        fits = feasible(problem, middle)
        open_ = high - low > 1
        low, high = np.where(open_ & fits, middle, low), np.where(open_ & ~fits, middle, high)
    return round_to_feasible(low, problem.rank_cap, lambda rank: feasible(problem, rank))
