"""The baseline of Xie and Wen, section 3.3: draw every client's frequency, then maximise the rank."""

from __future__ import annotations

from typing import Literal

import numpy as np

from splitrank import streams
from splitrank.planning.problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    energy_j,
    feasible,
    frequency_range_hz,
    latency_s,
    memory_rank,
    round_to_feasible,
)


def random_frequency(problem: Problem, frequency_hz: FloatArray) -> IntArray:
    """Largest feasible rank of every client at a given frequency.

    r_i = floor(min((T0 - T_0)/T_1, (E_0 - E_0')/E_1)),  where rank r takes T_0 + T_1·r and E_0' + E_1·r at f_i

    With the frequency given, E1 and E2 are linear in r. The rank is checked against the same interval of
    frequencies as the planner's, so it is never above the planner's.

    Args:
        problem: the round.
        frequency_hz: f, shape (I,), > 0; NaN where none could be drawn.

    Returns:
        the rank, shape (I,), in 0..cap.
    """

    def fits(rank: IntArray) -> BoolArray:
        low_hz, high_hz = frequency_range_hz(problem, rank)
        return feasible(problem, rank) & (low_hz <= frequency_hz) & (frequency_hz <= high_hz)

    with np.errstate(invalid="ignore", divide="ignore"):
        time_at_0_s, energy_at_0_j = latency_s(problem, 0, frequency_hz), energy_j(problem, 0, frequency_hz)
        time_slope_s = latency_s(problem, 1, frequency_hz) - time_at_0_s
        energy_slope_j = energy_j(problem, 1, frequency_hz) - energy_at_0_j
        bound = np.minimum(
            (problem.deadline_s - time_at_0_s) / time_slope_s,
            (problem.energy_budget_j - energy_at_0_j) / energy_slope_j,
        )
    return round_to_feasible(np.minimum(bound, memory_rank(problem)), problem.rank_cap, fits)


def draw_frequency_hz(
    problem: Problem, seed: int, round: int, random_range: Literal["feasible", "full"] = "feasible"
) -> FloatArray:
    """Draw every client's frequency for one round.

    f_i ~ Unif[f_lat(r), min(f_max, f_en(r))] with r the rank floor, or Unif(0, f_max]

    The paper does not give its distribution. On the range feasible at the smallest rank allowed, 1 or the fixed one,
    the baseline is never infeasible where the planner is not; on the full range it may be. A range that starts at 0 is
    open there.

    Args:
        problem: the round.
        seed: the run's seed.
        round: round number, >= 1.
        random_range: ``"feasible"`` or ``"full"``.

    Returns:
        f [Hz], shape (I,); on the feasible range NaN where the rank fits at no frequency.
    """
    uniform = streams.uniform_per_client(seed, "random-frequency", round, problem.num_clients)
    if random_range == "full":
        return problem.max_frequency_hz * (1.0 - uniform)
    low_hz, high_hz = frequency_range_hz(problem, problem.rank_floor)
    fits = feasible(problem, problem.rank_floor)
    # Clients that have no range must not bring infinities into the arithmetic.
    low_hz = np.where(fits, low_hz, 0.0)
    drawn_hz = np.where(
        low_hz > 0, np.minimum(low_hz + uniform * (high_hz - low_hz), high_hz), high_hz * (1.0 - uniform)
    )
    return np.where(fits, drawn_hz, np.nan)
